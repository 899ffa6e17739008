"""Figures over tensors: heat maps of the answer, of the eigenvectors' mass and of the regret.

A model has more tensors than a screen has rows: the largest are shown, and the caller can say how
many (``largest``); likewise for measurements (``columns``).  Rows and columns are categories, so
irregular schedules keep equal cells.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from lipprof.advice import Choice
from lipprof.record import Run, Status
from lipprof.report import derived
from lipprof.report.figures.decimate import keep_extremes
from lipprof.report.figures.labels import labels, tensor_labels
from lipprof.report.figures.theme import (
    FIRST,
    HEAT_ROW,
    LINKED,
    NEUTRAL,
    SECOND,
    Trace,
    template,
    with_alpha,
)

MAX_ROWS = 60
MAX_COLUMNS = 240
MASS_ROWS = 30
WORST_REGRET = 2.0

_FAILED = -1  # code of a measurement without an answer
_BLOCK = ("largest", "largest_residual", "smallest", "smallest_residual")
_COMPARED = ("lipschitz", "lipschitz_upper", "threshold")


def largest(
    sizes: NDArray[np.integer] | NDArray[np.floating], limit: int = MAX_ROWS
) -> NDArray[np.intp]:
    """Positions of the ``limit`` largest, in their own order."""
    return np.sort(np.argsort(-sizes, kind="stable")[:limit])


def height(rows: int) -> int:
    """Height of a map, in pixels."""
    return 110 + HEAT_ROW * max(rows, 3)


def columns(series: NDArray[np.floating]) -> NDArray[np.intp]:
    """Measurements that a map has columns for: all, or such as keep the extremes of a series."""
    return keep_extremes(series, MAX_COLUMNS)


def choice_figure(run: Run, name: str = "recommendation") -> go.Figure:
    """Choice per tensor and iteration: what was recommended, or what AMOS ran.

    Args:
        run: the run.
        name: ``recommendation`` or ``assigned``.

    Returns:
        The figure.
    """
    rows = largest(run.tensor_numel)
    shown = columns(derived.first_order_share(run, name))
    heatmap = _choices(run, shown, run[name][shown][:, rows].T)
    heatmap["y"] = tensor_labels(run.tensor_names, rows)
    choice = heatmap["z"]
    if name == "recommendation":
        compared = [run[f"tensor_{n}"][shown][:, rows].T for n in _COMPARED]
        heatmap.update(
            customdata=np.stack(compared, axis=-1).astype(np.float32),
            hovertemplate="%{y}<br>iteration %{x}: %{text}<br>L = %{customdata[0]:.3g} (with its "
            "noise %{customdata[1]:.3g}), 3λ²/γ = %{customdata[2]:.3g}<extra></extra>",
        )
    figure = _heat_figure(heatmap, rows=len(rows), x_title="iteration")
    if name == "assigned":
        recommended = run["recommendation"][shown][:, rows].T
        _add_dots(figure, (choice > 0) & (recommended > 0) & (choice != recommended))
    return figure


def pair_choice_figure(run: Run) -> go.Figure:
    """Choice of ELMO's or FOSI's rule per eigenpair and iteration."""
    chosen = run["pair_assigned"]
    shown = columns((chosen == Choice.SECOND).mean(axis=1))
    heatmap = _choices(run, shown, chosen[shown].T)
    heatmap["y"] = labels(run.pair_labels)
    return _heat_figure(heatmap, rows=len(run.pair_labels), x_title="iteration")


def _choices(run: Run, shown: NDArray[np.intp], codes: NDArray[np.int8]) -> Trace:
    """A map of choices, but for the labels of its rows.

    Args:
        run: the run.
        shown: measurements that it has columns for, (C,).
        codes: of ``Choice``, (R, C).

    Returns:
        The trace.
    """
    failed = run["status"][shown] == Status.FAILED
    choice = np.where(failed, _FAILED, codes).astype(np.int8)
    words = np.array([c.label for c in Choice] + ["failed"])
    return dict(
        z=choice,
        x=labels(run["iteration"][shown]),
        text=words[np.clip(choice, _FAILED, len(Choice) - 1)],
        hovertemplate="%{y}<br>iteration %{x}: %{text}<extra></extra>",
        zmin=_FAILED - 0.5,
        zmax=len(Choice) - 0.5,
        colorscale=_steps(["rgba(0,0,0,0)", with_alpha(NEUTRAL, 0.25), FIRST, SECOND]),
        showscale=False,
    )


def _add_dots(figure: go.Figure, where: NDArray[np.bool_]) -> None:
    """Dot some cells of a map."""
    heatmap: Any = figure.data[0]
    rows, places = np.nonzero(where)
    dots = dict(
        type="scatter",
        x=np.asarray(heatmap.x)[places],
        y=np.asarray(heatmap.y)[rows],
        mode="markers",
        marker=dict(size=4, color="#ffffff"),
        hoverinfo="skip",
        showlegend=False,
    )
    figure.add_trace(dots)


def mass_figure(run: Run, mass: NDArray[np.float64]) -> go.Figure:
    """Share of each pair's vector that lies in each tensor.

    Args:
        run: the run.
        mass: ``eigenvector_mass`` of one of its measurements, or ``lipschitz_mass``, of the
            gradients of the eigenvalues; (P, T).

    Returns:
        The figure.
    """
    rows = largest(np.nan_to_num(mass).max(axis=0, initial=0.0), MASS_ROWS)
    heatmap: Trace = dict(
        z=mass[:, rows].T,
        x=labels(run.pair_labels),
        y=tensor_labels(run.tensor_names, rows),
        hovertemplate="%{y}<br>%{x}: %{z:.1%}<extra></extra>",
        zmin=0,
        colorscale=[(0, with_alpha(SECOND, 0.06)), (1, SECOND)],
        colorbar=_colorbar(tickformat=".0%"),
    )
    return _heat_figure(heatmap, rows=len(rows), x_title="pair")


def block_figure(run: Run) -> go.Figure:
    """Largest eigenvalue of every diagonal block and iteration, by its decade."""
    largest_, converged = run["block_largest"], run["block_converged"] == 1
    rows = largest(np.nan_to_num(np.abs(largest_)).max(axis=0, initial=0.0))
    shown = columns(np.fmax.reduce(largest_, axis=1, initial=-np.inf))
    told = [run[f"block_{name}"][shown][:, rows].T for name in _BLOCK]
    positive = np.where(told[0] > 0, told[0], np.nan)
    heatmap: Trace = dict(
        z=np.log10(positive),
        x=labels(run["iteration"][shown]),
        y=tensor_labels(run.block_names, rows),
        customdata=np.stack(told, axis=-1),
        hovertemplate="%{y}, iteration %{x}<br>largest λ %{customdata[0]:.4g} ± "
        "%{customdata[1]:.1e}<br>smallest λ %{customdata[2]:.4g} ± %{customdata[3]:.1e}"
        "<extra></extra>",
        colorscale=[(0, with_alpha(SECOND, 0.06)), (0.5, SECOND), (1, FIRST)],
        colorbar=_colorbar(**_decades(positive)),
    )
    figure = _heat_figure(heatmap, rows=len(rows), x_title="iteration")
    uncertain = np.isfinite(positive) & ~converged[shown][:, rows].T
    _add_dots(figure, uncertain)
    return figure


def _decades(values: NDArray[np.float64]) -> dict[str, object]:
    """Ticks of a colour bar of logarithms: a few powers of ten."""
    known = values[np.isfinite(values)]
    if known.size == 0:
        return {}
    low, high = np.floor(np.log10(known.min())), np.ceil(np.log10(known.max()))
    powers = np.arange(low, high + 1, max(1, round((high - low) / 6)))
    return {"tickvals": powers.tolist(), "ticktext": [f"{10.0**power:.0e}" for power in powers]}


def regret_figure(run: Run) -> go.Figure:
    """How much guaranteed descent the optimizer's step gives away, per pair and iteration."""
    shown = columns(np.fmax.reduce(run["regret"], axis=1, initial=0.0))
    regret = run["regret"][shown].T
    heatmap: Trace = dict(
        z=np.clip(regret, 0, WORST_REGRET),
        x=labels(run["iteration"][shown]),
        y=labels(run.pair_labels),
        customdata=regret,
        hovertemplate="%{y}, iteration %{x}<br>regret %{customdata:.3g}<extra></extra>",
        zmin=0,
        zmax=WORST_REGRET,
        colorscale=[(0, SECOND), (0.5, with_alpha(NEUTRAL, 0.25)), (1, FIRST)],
        colorbar=_colorbar(
            tickvals=[0, 1, WORST_REGRET],
            ticktext=["0: ELMO", "1: no descent", "≥ 2: may ascend"],
        ),
    )
    return _heat_figure(heatmap, rows=len(regret), x_title="iteration")


def _steps(colours: Sequence[str]) -> list[tuple[float, str]]:
    edges = np.linspace(0, 1, len(colours) + 1)
    return [(edges[k + side], c) for k, c in enumerate(colours) for side in (0, 1)]


def _colorbar(**extra: object) -> dict[str, object]:
    return dict(
        orientation="h", x=0, xanchor="left", y=1, yanchor="bottom", len=0.6, thickness=8,
        outlinewidth=0, ticks="", tickangle=0, **extra,
    )  # fmt: skip


def _heat_figure(heatmap: Trace, *, rows: int, x_title: str) -> go.Figure:
    figure = go.Figure(_frame(x_title))
    figure.layout.height = height(rows)  # pyright: ignore[reportAttributeAccessIssue]
    figure.add_trace(dict(type="heatmap", xgap=1, ygap=1, hoverongaps=False) | heatmap)
    for axis, count in ((figure.update_xaxes, len(heatmap["x"])), (figure.update_yaxes, rows)):
        axis(autorangeoptions=dict(minallowed=-0.5, maxallowed=count - 0.5))  # whatever dots it has
    return figure


@cache
def _frame(x_title: str) -> go.Figure:
    figure = go.Figure(layout=dict(template=template(), meta={LINKED: x_title}))
    figure.update_xaxes(type="category", title_text=x_title, showgrid=False)
    figure.update_yaxes(
        type="category", autorange="reversed", showgrid=False, tickfont_size=10, dtick=1
    )
    return figure
