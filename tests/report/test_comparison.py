"""Runs side by side: the common point by hand, the differences, what is left out, the page."""

import json
import re
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lipprof.errors import ConfigError, RunFileError
from lipprof.record import Measurement, Status
from lipprof.report.comparison.compare import By, axis, compare, compare_files, sentences, values_at
from lipprof.report.comparison.figures import comparison_panels, track
from lipprof.report.comparison.page import render_comparison
from lipprof.report.comparison.tables import comparison_report
from lipprof.report.figures.labels import label
from lipprof.report.library import find_runs, short_names
from lipprof.settings import Settings

NAMES = ["body", "head"]


def rows(losses, *, step=10, seconds=5.0, failed=()):
    for i, loss in enumerate(losses):
        gone = i in failed
        yield Measurement.blank(
            pairs=5,
            tensors=2,
            iteration=step * i,
            time=1.7e9 + seconds * i,
            loss=np.nan if gone else loss,
            eigenvalue=np.full(5, np.nan) if gone else np.array([10.0 * loss, 2, 1, -1, -2]),
            converged=np.ones(5, np.int8),
            status=Status.FAILED if gone else Status.CONVERGED,
        )


@pytest.fixture
def two(write_run):
    """Return a short fast run and a long slow one, the last measurement of which failed."""
    fast = write_run(names=NAMES, rows=rows([4.0, 3.0, 2.0], step=10, seconds=5), name="fast.h5")
    slow = rows([4.0, 3.5, 3.0, 2.5, 1.0], step=8, seconds=9, failed=[4])
    return fast, write_run(names=NAMES, rows=slow, name="slow.h5")


@pytest.mark.parametrize(
    ("by", "common", "positions"),
    [
        (By.ITERATION, 20, (2, 2)),  # fast: 0 10 20; slow: 0 8 16 24, 32 failed
        (By.TIME, 10, (2, 1)),  # fast: 0 5 10 s; slow: 0 9 18 27 s
        (By.LOSS, 2.5, (2, 3)),
    ],
)
def test_the_common_point(two, by, common, positions):
    comparison = compare(two, by)
    assert comparison.common == common
    assert comparison.positions == positions
    expected = [run["loss"][p] for run, p in zip(two, positions, strict=True)]
    assert values_at(comparison, "loss") == expected
    assert comparison.names == ("fast", "slow")


def test_sentences_name_the_lowest(two):
    text = sentences(compare(two, By.ITERATION))
    assert text[0].startswith("Compared at iteration 20,")
    assert text[1] == "The lowest loss there is that of fast, 2."
    assert text[2] == "The smallest λ at the top end there is that of fast, 20."
    assert "lowest loss there" not in " ".join(sentences(compare(two, By.LOSS)))


def test_a_run_that_starts_after_the_common_point_has_no_value(write_run):
    early = write_run(names=NAMES, rows=rows([4.0]), name="early.h5")
    late = (Measurement.blank(pairs=5, tensors=2, iteration=i, loss=1.0) for i in (50, 60))
    comparison = compare([early, write_run(names=NAMES, rows=late, name="late.h5")], By.ITERATION)
    assert comparison.positions == (0, None)
    np.testing.assert_equal(values_at(comparison, "loss"), [4.0, np.nan])


def test_differences_are_named_and_nothing_else(write_run):
    one = write_run(names=["a", "b"], rows=rows([1.0]), name="one.h5")
    other = write_run(
        names=["b", "c"],
        rows=rows([1.0]),
        name="other.h5",
        optimizer_class="SGD",
        tensor_numel=(7, 8),
        settings=Settings(top=3, bottom=2, alpha=0.5).to_toml(),
    )
    comparison = compare([one, other], By.ITERATION)
    assert {d.name: d.values for d in comparison.settings} == {
        "optimizer": ("AdamW", "SGD"),
        "alpha": ("0.9", "0.5"),
    }
    sizes = {d.name: d.values for d in comparison.tensors}
    a, b = (f"{n:,}" for n in one.tensor_numel)
    assert sizes == {"a": (a, ""), "b": (b, "7"), "c": ("", "8")}


def test_files_that_are_no_runs_are_left_out_and_named(two, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "bad\x1b.h5").write_text("x")
    with ExitStack() as stack:
        comparison = compare_files([tmp_path, two[0].path], "iteration", stack)
        assert comparison.names == ("fast", "slow"), "each once"
        (out,) = comparison.left_out
        assert "not an HDF5 file" in out.reason
        console = Console(width=120)
        with console.capture() as capture:
            console.print(comparison_report(comparison))
        assert "is left out" in capture.get()
        assert "\x1b" not in capture.get()
        with pytest.raises(ConfigError, match="expected iteration, time, loss"):
            compare_files([tmp_path], "epoch", stack)
        with pytest.raises(RunFileError, match="not an HDF5 file"):
            compare_files([tmp_path / "sub"], "iteration", stack)
        (tmp_path / "none").mkdir()
        with pytest.raises(RunFileError, match="There is no run file"):
            compare_files([tmp_path / "none"], "iteration", stack)


@pytest.mark.parametrize("by", By)
def test_runs_without_a_success_do_not_decide(write_run, two, by):
    bad = write_run(names=NAMES, rows=rows([1.0, 1.0], failed=[0, 1]), name="bad.h5")
    empty = write_run(names=NAMES, rows=[], name="empty.h5")
    comparison = compare([*two, bad, empty], by)
    assert comparison.positions[:2] == compare(two, by).positions
    assert comparison.positions[2:] == (None, None)
    alone = compare([bad, empty], by)
    assert sentences(alone) == [
        "No run has a measurement that succeeded: there is nothing to compare."
    ]
    assert "nothing to compare" in render_comparison(alone)


@pytest.mark.parametrize("by", By)
def test_figures_draw_every_run_on_the_axis(two, by):
    panels = {p.id: p.figure for p in comparison_panels([track(r, r.path.stem) for r in two], by)}
    assert ("loss" in panels) == (by is not By.LOSS)
    for run, trace in zip(two, panels["top"].data, strict=True):
        np.testing.assert_array_equal(trace.x, axis(run, by))
        np.testing.assert_array_equal(trace.y, run["eigenvalue"][:, 0])
    colours = {t.line.color for t in panels["top"].data}
    assert colours == {t.line.color for t in panels["bottom"].data}
    assert len(colours) == 2
    assert "edge" not in panels, "never measured"


def test_names_tell_files_apart():
    paths = [Path(p) for p in ("/a/x/run.h5", "/a/y/run.h5", "/b/y/run.h5", "/other.h5")]
    assert short_names(paths) == ["x/run", "a/y/run", "b/y/run", "other"]


def test_folders_are_searched_one_level_deep(tmp_path):
    for name in ("b.h5", "a.h5", "sub/c.h5", "sub/deep/d.h5", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_runs([tmp_path])]
    assert found == ["a.h5", "b.h5", "sub/c.h5"]


def test_the_page_shows_everything_and_nothing_gets_in(write_run):
    hostile = "<script>alert(1)</script>"
    one = write_run(names=[hostile], rows=None, count=3, name="<b>one.h5", model_class=hostile)
    two = write_run(names=["plain"], rows=None, count=4, name="two.h5")
    page = render_comparison(compare([one, two], By.ITERATION))
    assert hostile not in page
    assert "<b>one" not in page
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    assert {"loss", "top", "bottom", "positive", "share"} <= figures.keys()
    assert figures["top"]["data"][0]["name"] == label("<b>one")
    assert page.count("plotly.js v") == 1
