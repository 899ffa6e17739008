"""Statistics and tables of the benchmark, without measuring anything."""

import json
import time

import pytest

from tests.benchmarks import results
from tests.benchmarks.results import Part
from tests.benchmarks.sections import Column, Section, scientific, seconds, spread
from tests.benchmarks.timing import Summary, interleaved, ratio

SECTION = Section(
    name="speed",
    title="Speed",
    legend="What it is.",
    columns=(
        Column("problem", "problem"),
        Column("ratio", "ratio", spread),
        Column("error", "error", scientific),
        Column("note", "note"),
    ),
    subjects=("small", "large"),
    measure=lambda _setting, _subject: [],
)


def part(subject, date="today", **row):
    fields = {"problem": subject, "data": f"{subject} data", **row}
    return Part("speed", subject, [fields], {"device": "abacus", "date": date})


def test_quartiles_of_five_samples_are_its_second_and_fourth():
    assert Summary.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Summary(3.0, 2.0, 4.0, 5)
    assert Summary.of([2.5]) == Summary(2.5, 2.5, 2.5, 1)


def test_ratios_are_taken_within_repetitions():
    """A machine that is ten times slower in one repetition changes nothing."""
    baseline, twice = [1.0, 10.0, 1.0], [2.0, 20.0, 2.0]
    assert ratio(twice, baseline) == Summary(2.0, 2.0, 2.0, 3)


def test_contestants_take_turns_in_rotating_order():
    order = []
    calls = {name: (lambda n=name: order.append(n)) for name in "abc"}
    samples = interleaved(calls, 3, warmups=0)
    assert "".join(order) == "abcbcacab"
    assert [len(values) for values in samples.values()] == [3, 3, 3]


def test_warmups_run_but_do_not_count():
    slow_once = iter([0.05, 0.0, 0.0])
    samples = interleaved({"x": lambda: time.sleep(next(slow_once))}, 2)
    assert max(samples["x"]) < 0.04


def test_markdown_leaves_out_empty_columns_and_escapes_pipes():
    row = {"ratio": Summary.of([1.0, 1.2, 1.4]).as_dict(), "note": "a|b"}
    table = results.markdown_table(SECTION, [part("small", **row)])
    assert table.splitlines() == [
        "| problem | ratio | note |",
        "| --- | --- | --- |",
        "| small | 1.20 (1.10 to 1.30) | a\\|b |",
    ]


def test_markdown_groups_parts_by_circumstances_and_describes_problems_once():
    summary = Summary.of([1.0, 1.2, 1.4]).as_dict()
    parts = {"speed/large": part("large"), "speed/small": part("small", ratio=summary)}
    text = results.markdown([SECTION], parts)
    assert "- small (3 repetitions), large: abacus, today." in text
    assert text.count("small data") == 1
    parts["speed/large"] = part("large", date="yesterday")
    assert "- large: abacus, yesterday." in results.markdown([SECTION], parts)


def test_parts_survive_the_disk_and_are_replaced_one_by_one(tmp_path):
    path = tmp_path / "results.json"
    assert results.read(path) == {}
    first = {one.key: one for one in (part("small", error=1e-3), part("large", error=2e-3))}
    results.write(path, first)
    assert results.read(path) == first
    results.write(path, results.read(path) | {"speed/large": part("large", error=3e-3)})
    rows = {key: value["rows"][0]["error"] for key, value in json.loads(path.read_text()).items()}
    assert rows == {"speed/small": 1e-3, "speed/large": 3e-3}


@pytest.mark.parametrize("other", ["", "# Title\n\ntext\n"])
def test_markers_keep_the_rest_of_the_text(other):
    once = results.replace_between(other, "cpu", "first")
    both = results.replace_between(once, "cuda", "gpu figures")
    again = results.replace_between(both, "cpu", "second")
    assert other.strip() in again
    assert "first" not in again
    assert again.index("second") < again.index("gpu figures")
    assert results.replace_between(again, "cpu", "second") == again


def test_rich_table_has_the_cells_of_the_markdown():
    table = results.rich_table(SECTION, [part("small", error=0.00123)])
    assert [column.header for column in table.columns] == ["problem", "error"]
    assert list(table.columns[1].cells) == ["1.2e-03"]


def test_units():
    assert seconds(0.0123) == "12.3 ms"
    assert seconds(12.3) == "12.30 s"
