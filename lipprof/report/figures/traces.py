"""What figures are built of: one series as a line, a band, stacked axes.

Hollow markers are pairs that did not converge; gaps are measurements that failed.  A line has no
more points than a screen has pixels (``decimate``).  Browsers draw a line of thousands of points at
once, but every marker as an element of its own, about 0.3 ms of CPU time each: a long series is a
line, with markers where it is hollow.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from lipprof.report.derived import Floats, Series
from lipprof.report.figures.decimate import keep_extremes
from lipprof.report.figures.labels import label
from lipprof.report.figures.theme import (
    LINKED,
    NEUTRAL,
    ROW_HEIGHT,
    Trace,
    template,
    with_alpha,
)

POINTS = 1000
"""Of one line.  Up to here all measurements are drawn."""

MARKED = 250
"""Points of one line up to which each has a marker."""

DOTS = 1000
"""Markers of all series of a figure that have no lines."""


def draw_line(
    x: NDArray[Any],
    series: Series,
    *,
    name: str,
    colour: str,
    x_name: str = "iteration",
    showlegend: bool = True,
    spread: Floats | None = None,
    mode: str = "lines+markers",
    dash: str = "solid",
    points: int = POINTS,
    marked: int = MARKED,
) -> list[Trace]:
    """Draw one series; hollow markers where it is not certain.

    Args:
        x: (M,).
        series: (M,).
        name: in the legend and in the hover text.
        colour: of line and markers.
        x_name: of what ``x`` is, in the hover text.
        showlegend: whether the legend has it.
        spread: (M,), told in the hover text after ±.
        mode: ``lines``, ``markers`` or both.
        dash: plotly's name of the line's style.
        points: how many to draw at most.
        marked: how many markers to draw at most, of a line.

    Returns:
        The trace; of a long line with uncertain points a second one, of these.
    """
    style: dict[str, Any] = dict(
        name=label(name), colour=colour, x_name=x_name, spread=spread, dash=dash
    )
    keep = keep_extremes(series.values, points)
    if mode != "lines+markers" or keep.size <= marked:
        return [_draw(x, series, keep, mode=mode, showlegend=showlegend, **style)]
    traces = [_draw(x, series, keep, mode="lines", showlegend=showlegend, **style)]
    hollow = np.flatnonzero(~series.converged & np.isfinite(series.values))
    if hollow.size:
        hollow = hollow[keep_extremes(series.values[hollow], marked)]
        traces.append(_draw(x, series, hollow, mode="markers", showlegend=False, **style))
    return traces


def _draw(
    x: NDArray[Any],
    series: Series,
    keep: NDArray[np.intp],
    *,
    name: str,
    colour: str,
    x_name: str,
    showlegend: bool,
    spread: Floats | None,
    mode: str,
    dash: str,
) -> Trace:
    y = series.values[keep]
    hollow = ~series.converged[keep] & np.isfinite(y)
    some = "markers" in mode and bool(hollow.any())
    hover = f"{name} %{{y:.4g}}" + ("" if spread is None else " ± %{customdata:.1e}")
    told = "%{text}" if some else ""
    return dict(
        type="scatter",
        x=x[keep],
        y=y,
        customdata=None if spread is None else spread[keep],
        text=np.where(hollow, f"<br>{series.flaw}", "").tolist() if some else None,
        hovertemplate=f"{x_name} %{{x}}<br>{hover}{told}<extra></extra>",
        mode=mode,
        name=name,
        line=dict(color=colour, width=1.8, dash=dash),
        marker=dict(
            size=np.where(hollow, 9, 6) if some else 6,
            symbol=np.where(hollow, "circle-open", "circle").tolist() if some else "circle",
            line=dict(width=np.where(hollow, 1.6, 0) if some else 0),
            opacity=1,
        ),
        showlegend=showlegend,
    )


def draw_dots(
    x: NDArray[Any],
    series: Series,
    *,
    name: str,
    colour: str,
    among: int,
    x_name: str = "iteration",
) -> list[Trace]:
    """Draw one of several series as markers alone; see ``draw_line``.

    Args:
        x: (M,).
        series: (M,).
        name: in the hover text.
        colour: of the markers.
        among: how many series the figure has, which share ``DOTS``.
        x_name: of what ``x`` is, in the hover text.

    Returns:
        The trace.
    """
    points = min(MARKED, DOTS // max(1, among))
    return draw_line(
        x,
        series,
        name=name,
        colour=colour,
        x_name=x_name,
        showlegend=False,
        mode="markers",
        points=points,
    )


def draw_band(x: NDArray[Any], series: Series, residual: Floats, colour: str) -> Trace:
    """Draw λ ± residual, an interval that holds an eigenvalue, as one closed outline."""
    keep = keep_extremes(series.values, POINTS)
    keep = keep[np.isfinite(series.values[keep]) & np.isfinite(residual[keep])]
    x, middle, half = x[keep], series.values[keep], residual[keep]
    return dict(
        type="scatter",
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([middle + half, (middle - half)[::-1]]),
        fill="toself",
        fillcolor=with_alpha(colour, 0.14),
        mode="lines",
        line=dict(width=0),
        hoverinfo="skip",
        showlegend=False,
    )


def stacked(*titles: str, x_title: str = "iteration") -> go.Figure:
    """Start a figure of rows that share their horizontal axis.

    Args:
        titles: of the vertical axes, one per row, with units.
        x_title: of the shared axis; figures with the same one share cursor and zoom on a page.

    Returns:
        The figure without traces.
    """
    return go.Figure(_stacked(titles, x_title))


@lru_cache(64)
def _stacked(titles: tuple[str, ...], x_title: str) -> go.Figure:
    """Build what ``stacked`` copies: five times cheaper than making it anew."""
    rows = len(titles)
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.09)
    figure.update_layout(
        template=template(), height=ROW_HEIGHT * rows, barcornerradius=2, meta={LINKED: x_title}
    )
    for row, title in enumerate(titles, 1):
        figure.update_yaxes(title_text=title, row=row, col=1)
    figure.update_xaxes(title_text=x_title, row=rows, col=1)
    return figure


def log_axis(figure: go.Figure, values: Floats, row: int = 1) -> None:
    """Make a row's axis logarithmic, with a tick per decade where there are several.

    Ticks within a decade are written in full: plotly's own say 2 for 0.02.
    """
    positive = values[np.isfinite(values) & (values > 0)]
    decades = np.log10(positive.max() / positive.min()) if positive.size else 0.0
    figure.update_yaxes(type="log", exponentformat="e", row=row, col=1)
    if decades >= 2:
        figure.update_yaxes(dtick=max(1, round(decades / 5)), row=row, col=1)
    elif positive.size:
        plain = positive.min() >= 1e-3 and positive.max() < 1e4
        figure.update_yaxes(dtick="D2", tickformat="~g" if plain else ".0e", row=row, col=1)


def mark_level(figure: go.Figure, height: float, row: int = 1) -> None:
    """Draw a dashed line across a row."""
    style = dict(color=NEUTRAL, dash="dash", width=1)
    ends = dict(xref="x domain", x0=0, x1=1, y0=height, y1=height)
    figure.add_shape(type="line", **ends, line=style, row=row, col=1)
