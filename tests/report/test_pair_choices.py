"""What ELMO or FOSI chose for eigenpairs, rebuilt from a run file and shown."""

import html
from dataclasses import replace

import h5py
import numpy as np
import pytest
from rich.console import Console

from lipprof.advice import Choice
from lipprof.errors import RunFileError
from lipprof.record import open_run
from lipprof.report import tables
from lipprof.report.derived import latest, select
from lipprof.report.document import document
from lipprof.report.page import render
from lipprof.report.sections import sections
from lipprof.report.summary import sentences, summarize
from tests.report.conftest import gpt_names, gpt_numel, measurements

LIMIT = 20.0
RULE = f"threshold(limit={LIMIT})"
SECTION = "What was chosen in each eigenspace"


def chosen_rows(count=20):
    """Synthetic measurements with what the rule says of them: nothing at first and in failures."""
    names = gpt_names(6)
    for row in measurements(names, [gpt_numel(n) for n in names], count):
        second = row.lipschitz_drift < LIMIT
        codes = np.where(second, Choice.SECOND, Choice.FIRST)
        codes[np.isnan(row.lipschitz_drift) | (row.converged == 0)] = Choice.NONE
        yield replace(row, pair_assigned=codes.astype(np.int8))


@pytest.fixture
def chosen(write_run):
    """Return a run of FOSI with a rule."""
    return write_run(rows=chosen_rows(), pair_rule=RULE, optimizer_class="FOSI")


def shown(run, position=None, width=200):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(tables.report(run, latest(run) if position is None else position))
    return capture.get()


def test_switches_are_answers_other_than_the_last_one(chosen):
    held, expected = {}, []
    for iteration, row in zip(chosen["iteration"], chosen["pair_assigned"], strict=True):
        for pair, code in enumerate(row):
            if code and code != held.get(pair, Choice.FIRST):
                expected.append((iteration, pair, chosen.pair_labels[pair], code))
            held[pair] = code or held.get(pair, Choice.FIRST)
    found = chosen.pair_switches()
    assert [(s.iteration, s.pair, s.name, s.to) for s in found] == expected
    assert len(found) > 5
    position = {int(i): k for k, i in enumerate(chosen["iteration"])}
    for switch in found:
        known = chosen["lipschitz_drift"][position[switch.iteration], switch.pair]
        relation = "<" if switch.to is Choice.SECOND else "≥"
        assert switch.reason == f"L = {known:.2e} {relation} the limit = {LIMIT:.2e}"


def test_terminal_page_and_document_show_the_choices(chosen):
    run = chosen
    switches, last = run.pair_switches(), run["pair_assigned"][-1]
    counts = [int((last == code).sum()) for code in (Choice.SECOND, Choice.FIRST)]
    told = (
        f"Of 5 eigenpairs, FOSI's rule sent {counts[0]} to the second-order step, {counts[1]} left "
        f"to its base; {len(switches)} switches, the last at iteration {switches[-1].iteration:,}."
    )
    text, page = shown(run), render(run)
    assert told in text.replace("\n", " ")
    assert html.escape(told, quote=False).replace("'", "&#39;") in page
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("pair at")) + 1
    words = [line.split()[-1] for line in lines[start : start + 5]]
    assert words == [Choice(int(code)).name.lower() for code in last]
    assert "FOSI moved" in text
    assert html.escape(switches[-1].reason) in page
    assert "What FOSI moved, and why" in page
    assert SECTION in page
    listed = document(run, latest(run))["pair_switches"]
    assert [entry["reason"] for entry in listed] == [switch.reason for switch in switches]


def test_pairs_without_an_answer_are_counted_apart(chosen):
    told = next(s for s in sentences(summarize(chosen, 4)) if "eigenpairs" in s)
    assert "left to its base, 1 without an answer;" in told
    told = next(s for s in sentences(summarize(chosen, 0)) if "eigenpairs" in s)
    assert "sent 0 to the second-order step, 0 left to its base, 5 without an answer;" in told


def test_the_map_has_a_row_per_pair_and_shows_the_codes(chosen):
    history = next(s for s in sections(chosen, latest(chosen)) if s.id == "history")
    (panel,) = (p for p in history.panels if p.title == SECTION)
    heatmap = panel.figure.data[0]
    assert list(heatmap.y) == chosen.pair_labels
    expected = chosen["pair_assigned"].T.copy()
    expected[:, 7] = -1  # failed
    np.testing.assert_array_equal(heatmap.z, expected)


def test_a_run_without_choices_is_shown_as_before(write_run):
    run = write_run()
    for text in (shown(run), render(run)):
        assert "eigenpairs, " not in text.replace("3+2 eigenpairs", "")
        assert SECTION not in text
    header = next(line for line in shown(run).splitlines() if line.startswith("pair at"))
    assert "order" not in header


def test_a_file_from_before_the_choices_reads_and_is_shown(write_run):
    run = write_run()
    run.close()
    with h5py.File(run.path, "r+") as file:
        for name in ("pair_assigned", "pair_threshold"):
            del file[name]
        del file.attrs["pair_rule"]
    with open_run(run.path) as old:
        assert old["pair_assigned"].shape == (20, 5)
        assert not old["pair_assigned"].any()
        assert np.isnan(old["pair_threshold"]).all()
        assert old.measurement(3).pair_assigned.tolist() == [0] * 5
        assert old.pair_switches() == []
        assert SECTION not in shown(old)
        assert "FOSI" not in render(old)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("", "the rule was not recorded"),
        ("mine(a=1)", "by rule mine(a=1)"),
        ("random(share=0.5)", "by rule random(share=0.5)"),
        ("threshold(limit=1e9)", "not by rule threshold(limit=1e9) on the recorded numbers"),
    ],
)
def test_a_reason_that_the_file_does_not_bear_out_is_not_given(write_run, rule, reason):
    run = write_run(rows=chosen_rows(), pair_rule=rule)
    first = [s.reason for s in run.pair_switches() if s.to is Choice.FIRST]
    assert set(first) == {reason}


def test_codes_that_do_not_exist_are_damage(write_run):
    rows = [replace(row, pair_assigned=np.full(5, 7, np.int8)) for row in chosen_rows(3)]
    run = write_run(rows=rows)
    with pytest.raises(RunFileError, match="`pair_assigned` has codes other than 0 to 2"):
        tables.report(run, select(run))
