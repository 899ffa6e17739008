"""What figures are built of: one series as a line, a band, stacked axes.

Hollow markers are pairs that did not converge; gaps are measurements that failed.  A line has no
more points than a screen has pixels (``decimate``).
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
from lipprof.report.figures.theme import LINKED, NEUTRAL, Trace, template, with_alpha

POINTS = 1000
"""Of one line.  Up to here all measurements are drawn."""

MARKED = 250
"""Points up to which each has a marker: browsers are slow with many thousand on a page."""


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
) -> Trace:
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

    Returns:
        The trace.
    """
    name = label(name)
    keep = keep_extremes(series.values, points)
    y = series.values[keep]
    hollow = ~series.converged[keep] & np.isfinite(y)
    some = bool(hollow.any())
    if mode == "lines+markers" and keep.size > MARKED and not some:
        mode = "lines"
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


def draw_dots(x: NDArray[Any], series: Series, *, name: str, colour: str) -> Trace:
    """Draw one series as markers alone; arguments as for ``draw_line``."""
    return draw_line(
        x, series, name=name, colour=colour, showlegend=False, mode="markers", points=MARKED
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
        template=template(), height=220 * rows, barcornerradius=2, meta={LINKED: x_title}
    )
    for row, title in enumerate(titles, 1):
        figure.update_yaxes(title_text=title, row=row, col=1)
    figure.update_xaxes(title_text=x_title, row=rows, col=1)
    return figure


def log_axis(figure: go.Figure, values: Floats, row: int = 1) -> None:
    """Make a row's axis logarithmic, with a tick per decade where there are several."""
    positive = values[np.isfinite(values) & (values > 0)]
    decades = np.log10(positive.max() / positive.min()) if positive.size else 0.0
    figure.update_yaxes(type="log", exponentformat="e", row=row, col=1)
    if decades >= 2:
        figure.update_yaxes(dtick=max(1, round(decades / 5)), row=row, col=1)


def mark_level(figure: go.Figure, height: float, row: int = 1) -> None:
    """Draw a dashed line across a row."""
    style = dict(color=NEUTRAL, dash="dash", width=1)
    ends = dict(xref="x domain", x0=0, x1=1, y0=height, y1=height)
    figure.add_shape(type="line", **ends, line=style, row=row, col=1)
