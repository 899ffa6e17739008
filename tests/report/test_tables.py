import io

import numpy as np
import pytest
from rich.console import Console

from lipprof.record import Measurement
from lipprof.report import derived, tables
from lipprof.report.formats import number, percent
from lipprof.report.recompute import differences, recompute
from lipprof.report.tensor_table import ROWS_PER_SIDE
from tests.report.conftest import BLOCKS, with_blocks


def rendered(renderable, width=120):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def report(run, width=120, **options):
    return rendered(tables.report(run, derived.select(run), **options), width)


@pytest.mark.parametrize("width", [80, 120])
def test_the_answer_comes_first_and_fits(write_run, width):
    text = report(write_run(), width)
    lines = text.splitlines()
    assert lines[0].startswith("Use a first-order optimizer for ")
    assert max(map(len, lines)) <= width
    assert "\x1b" not in text


def test_the_numbers_are_those_of_the_file(write_run):
    run = write_run(layers=1)
    text = report(run, 200, every_tensor=True)
    answer = run.recommendation()
    assert f"for {percent(answer.first_order_share)} of the parameters" in text
    for i, name in enumerate(run.tensor_names):
        line = next(row for row in text.splitlines() if row.startswith(f"  {name}"))
        for values in (
            answer.evidence.lipschitz,
            answer.threshold,
            answer.evidence.curvature,
            answer.evidence.slope,
        ):
            assert number(values[i]) in line
    for label, eigenvalue in zip(run.pair_labels, run["eigenvalue"][-1], strict=True):
        assert number(eigenvalue) in next(r for r in text.splitlines() if r.startswith(label))
    assert "CUDA out of memory" in text
    assert "2,280 Hessian-vector products" in text  # 19 measurements of 120


def test_many_tensors_are_cut_to_the_largest_and_counted(write_run):
    run = write_run(layers=40)
    text = report(run, 200)
    shown = [line.split()[0] for line in text.splitlines() if line.startswith("  transformer")]
    choice, numel = run["recommendation"][-1], run.tensor_numel
    for side in (1, 2):
        mine = [i for i, name in enumerate(run.tensor_names) if choice[i] == side]
        sizes = sorted((numel[i] for i in mine if run.tensor_names[i] in shown), reverse=True)
        assert sizes == sorted(numel[mine], reverse=True)[:ROWS_PER_SIDE]
        assert f"and {len(mine) - ROWS_PER_SIDE:,} more (--all)" in text
    assert report(run, every_tensor=True).count("\n  transformer") == len(run.tensor_names)


def test_unconverged_numbers_are_marked(write_run):
    row = dict(
        eigenvalue=np.array([3.0, 2, 1, -1, -2]), converged=np.array([0, 1, 1, 1, 1], np.int8)
    )
    run = write_run(rows=[Measurement.blank(pairs=5, tensors=39, iteration=0, **row)])
    text = report(run)
    assert "~3" in text
    assert "~2" not in text
    assert "Sharpness (largest eigenvalue) is 3 (not converged)" in text


def test_one_measurement_says_that_it_takes_two(write_run):
    text = report(write_run(count=1))
    assert text.startswith("No recommendation yet: it takes two measurements")


def test_amos_is_reported_when_it_ran(write_run):
    assert "AMOS ran" not in report(write_run(name="plain.h5"))
    run = write_run(amos=True)
    share = percent(derived.first_order_share(run, "assigned")[-1])
    assert f"AMOS ran {share} of the parameters first-order" in report(run)
    assert f"{derived.switches(run).count:,} switches" in report(run)


def test_names_are_neither_markup_nor_escapes(write_run):
    run = write_run(names=["[red]x[/red]", "\x1b[31mansi", "[/]"])
    text = report(run)
    assert "[red]x[/red]" in text
    assert "\x1b" not in text
    assert "[/]" in text


def test_recomputed_says_where_it_differs(write_run):
    run = write_run()
    answer = recompute(run, rule="threshold", threshold=1e-30)
    changed = differences(answer, run["recommendation"][-1])
    text = rendered(tables.recomputed(answer, changed))
    assert f"Differs from what the run recorded on {len(changed)} tensors" in text
    assert f"{changed[0].name}: second-order -> first-order" in text
    same = recompute(run)
    assert "The same as the run recorded." in rendered(tables.recomputed(same, []))


def test_the_sharpest_blocks_are_listed(write_run):
    run = write_run(rows=with_blocks(2), **BLOCKS)
    text = report(run)
    lines = text[text.index("block at iteration 100") :].splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["b7", "~31"], ["b39", "2.39"]]
    assert "and 32 less sharp (--all)" in text
    assert "b9 " in report(run, every_tensor=True)
    assert "block at" not in report(write_run(name="plain.h5"))
