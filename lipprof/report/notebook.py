"""A run in a notebook: ``run.plot.eigenvalues()`` and what a cell shows of a run by itself.

``record`` must not know ``report``.  So ``lipprof`` itself, which knows every layer by name, tells
``record.register_view`` what to build when a run opened by ``lipprof.open_run`` is asked for
``plot``; this module, and plotly with it, is imported only then.
"""

import html
from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go

from lipprof.errors import RunFileError
from lipprof.record import Run
from lipprof.report import derived
from lipprof.report.figures import heatmaps, lipschitz, series
from lipprof.report.formats import MISSING, number, percent, sparkline
from lipprof.report.summary import sentences, state_of, summarize
from lipprof.report.superiority import superiority_figure
from lipprof.report.tables import SHARES, UNCONVERGED


class Plots:
    """The figures of the report's page, one method each.

    Args:
        run: the run; a figure shows what it has when the method is called.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def training(self) -> go.Figure:
        """Loss and gradient norm on the measured batch."""
        return series.training_figure(self._run)

    def eigenvalues(self) -> go.Figure:
        """Eigenvalues at both ends with residual bands, and 2/lr."""
        return series.eigenvalues_figure(self._run)

    def edge(self) -> go.Figure:
        """The optimizer's top eigenvalue over its edge of stability."""
        return series.edge_figure(self._run)

    def lipschitz(self) -> go.Figure:
        """L⁺ and L⁻, and how far the eigenvectors turned."""
        return lipschitz.lipschitz_figure(self._run)

    def estimators(self) -> go.Figure:
        """L of the outermost pairs by every estimator."""
        return lipschitz.estimators_figure(self._run)

    def rotation(self) -> go.Figure:
        """How fast the eigenbasis turns."""
        return lipschitz.rotation_figure(self._run)

    def superiority(self) -> go.Figure:
        """Newton's step beside gradient descent's, against L."""
        return superiority_figure(self._run)

    def recommendation(self) -> go.Figure:
        """Recommended optimizer per tensor and measurement."""
        return heatmaps.choice_figure(self._run)

    def assigned(self) -> go.Figure:
        """What AMOS ran per tensor and measurement."""
        return heatmaps.choice_figure(self._run, "assigned")

    def mass(self, iteration: int | None = None) -> go.Figure:
        """Share of each eigenvector that lies in each tensor.

        Args:
            iteration: None: the last measurement that did not fail.

        Returns:
            The figure.

        Raises:
            RunFileError: nothing was measured there.
        """
        position = derived.select(self._run, iteration)
        return heatmaps.mass_figure(self._run, self._run.row("eigenvector_mass", position))

    def lipschitz_mass(self, iteration: int | None = None) -> go.Figure:
        """Share of each eigenvalue's gradient that lies in each tensor; see ``mass``."""
        position = derived.select(self._run, iteration)
        return heatmaps.mass_figure(self._run, self._run.row("lipschitz_mass", position))

    def blocks(self) -> go.Figure:
        """Largest eigenvalue of each diagonal block and measurement."""
        return heatmaps.block_figure(self._run)

    def share(self) -> go.Figure:
        """Share of the parameters on the first-order side."""
        return series.share_figure(self._run)

    def steps(self) -> go.Figure:
        """The optimizer's step beside ELMO's and Newton's along the most extreme pairs."""
        return series.steps_figure(self._run)

    def regret(self) -> go.Figure:
        """How much guaranteed descent the optimizer's step gives away, per pair."""
        return heatmaps.regret_figure(self._run)

    def trust(self) -> go.Figure:
        """Residuals beside the tolerance, failures and cost."""
        return series.trust_figure(self._run)

    def __repr__(self) -> str:
        names = [name for name in vars(type(self)) if not name.startswith("_")]
        return f"<plots of {self._run.path.name}: {', '.join(f'{n}()' for n in names)}>"


def html_view(run: Run) -> Callable[[], str]:
    """Build ``_repr_html_`` of a run.

    Args:
        run: the run; one that was closed shows its ``repr``.

    Returns:
        What a notebook calls.
    """
    return lambda: _html(run)


def _html(run: Run) -> str:
    try:
        facts = summarize(run, derived.latest(run))
        first, *rest = sentences(facts)
        rows = "".join(_row(label, series) for label, series in derived.key_series(run).items())
        state = html.escape(f"{run!r}; {state_of(facts)}")
    except RunFileError:
        return f"<pre>{html.escape(repr(run))}</pre>"
    said = "<br>".join(html.escape(line) for line in rest)
    head = "<tr><th></th><th>last</th><th>min</th><th>max</th><th>trend</th></tr>"
    return (
        f"<div><b>{html.escape(first)}</b><br>{said}"
        f"<table>{head}{rows}</table><small>{state}</small></div>"
    )


def _row(label: str, series: derived.Series) -> str:
    known = np.flatnonzero(np.isfinite(series.values))
    write = percent if label in SHARES else number
    cells = [MISSING] * 3
    if known.size:
        values = series.values[known]
        marked = (known[-1], known[values.argmin()], known[values.argmax()])
        cells = [
            ("" if series.converged[i] else UNCONVERGED) + write(float(series.values[i]))
            for i in marked
        ]
    cells = [html.escape(text) for text in (label, *cells, sparkline(series.values))]
    return f"<tr>{''.join(f'<td>{text}</td>' for text in cells)}</tr>"
