"""A run in a notebook: the figures of the page, and a summary that lets nothing in."""

import subprocess
import sys

import pytest

import lipprof
from lipprof.record import Measurement
from lipprof.report.figures import series
from lipprof.report.sections import sections


@pytest.fixture
def opened(write_run):
    """Return a factory of runs opened as a user does."""

    def make(**options):
        return lipprof.open_run(write_run(**options).path)

    return make


def test_plots_are_the_figures_of_the_page(opened):
    with opened(amos=True) as run:
        page = {p.id: p.figure for s in sections(run, 19) for p in s.panels}
        for name, figure in page.items():
            assert getattr(run.plot, name)().to_json() == figure.to_json(), name
        assert run.plot.mass(100).to_json() != page["mass"].to_json()
        assert run.plot.edge().to_json() == series.edge_figure(run).to_json()
        assert "eigenvalues(), " in repr(run.plot)
        with pytest.raises(lipprof.LipprofError, match="no measurement at iteration 7"):
            run.plot.mass(7)


def test_a_cell_shows_the_answer_and_nothing_gets_in(opened):
    with opened(names=["<script>alert(1)</script>"], name="<b>run.h5", count=5) as run:
        shown = run._repr_html_()
    assert "Use a " in shown
    assert "<td>λ largest</td>" in shown
    assert "<script>" not in shown
    assert "<b>run" not in shown


@pytest.mark.parametrize("count", [0, 1])
def test_short_and_closed_runs_show_what_there_is(opened, count):
    run = opened(rows=[Measurement.blank(pairs=5, tensors=39, iteration=i) for i in range(count)])
    assert "No recommendation yet" in run._repr_html_()
    run.close()
    assert run._repr_html_().startswith("<pre>&lt;Run ")


def test_opening_a_run_does_not_wait_for_plotly(write_run):
    path = str(write_run(count=2).path)
    code = (
        f"import lipprof, sys; run = lipprof.open_run({path!r}); print('plotly' in sys.modules);"
        "run.plot; print('plotly' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
