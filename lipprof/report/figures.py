"""Figures over the iterations: pure functions from a run to a figure of plotly.

Hollow markers are pairs that did not converge; gaps are measurements that failed.  Text from the
file goes through ``heatmaps.label``: plotly reads a subset of HTML in axes and hover text.
"""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lipprof.record import Run, Status
from lipprof.report import derived
from lipprof.report.derived import Series
from lipprof.report.formats import number
from lipprof.report.heatmaps import label
from lipprof.report.theme import ALARM, NEGATIVE, NEUTRAL, POSITIVE, SECOND, template, with_alpha

HEADROOM = 1.5  # of the axis of the largest eigenvalues; 2/lr may leave it
LIMIT_NAME = "2/lr (limit of plain gradient descent)"


def training_figure(run: Run) -> go.Figure:
    """Loss and gradient norm on the measured batch."""
    figure = _stacked(2)
    certain = np.ones(len(run), bool)
    for row, (name, title) in enumerate((("loss", "loss"), ("grad_norm", "gradient norm")), 1):
        line = _line(run, Series(run[name], certain), name=title, colour=SECOND, showlegend=False)
        figure.add_trace(line, row=row, col=1)
    _titles(figure, ["loss", "gradient norm, loss/param"])
    return figure


def eigenvalues_figure(run: Run) -> go.Figure:
    """Eigenvalues at both ends with residual bands, and gradient descent's stability limit."""
    figure = _stacked(2)
    for pair, pair_label in enumerate(run.pair_labels):
        row, colour = (1, POSITIVE) if pair < run.top else (2, NEGATIVE)
        rank = pair if pair < run.top else len(run.pair_labels) - 1 - pair
        series = derived.pair_series(run, "eigenvalue", pair)
        figure.add_trace(_band(run, series, run["residual"][:, pair], colour), row=row, col=1)
        shade = with_alpha(colour, max(0.3, 0.85**rank))
        line = _line(
            run,
            series,
            name=pair_label,
            colour=shade,
            spread=run["residual"][:, pair],
            showlegend=False,
        )
        figure.add_trace(line, row=row, col=1)
    _add_limit(figure, run)
    _titles(figure, ["largest λ, loss/param²", "smallest λ, loss/param²"])
    return figure


def _add_limit(figure: go.Figure, run: Run) -> None:
    """Draw 2/lr without letting it set the axis: it may lie far above all eigenvalues."""
    limit = derived.gradient_descent_limit(run)
    top = run["eigenvalue"][:, : run.top]
    if np.isnan(limit).all() or np.isnan(top).all():
        return
    low, high = min(0.0, float(np.nanmin(top))), HEADROOM * max(0.0, float(np.nanmax(top)))
    figure.update_yaxes(range=[low - 0.04 * (high - low), high], row=1, col=1)
    if np.nanmin(limit) <= high:
        line = _line(run, Series(limit, limit > 0), name=LIMIT_NAME, colour=NEUTRAL)
        figure.add_trace(line.update(mode="lines", line=dict(dash="dash")), row=1, col=1)
    else:
        figure.add_annotation(
            text=f"{LIMIT_NAME} ≥ {number(np.nanmin(limit))}: above the plot",
            xref="paper", yref="paper", x=1, y=1, xanchor="right", yanchor="top", showarrow=False,
        )  # fmt: skip


def edge_figure(run: Run) -> go.Figure:
    """Top eigenvalue as the optimizer sees it, over the one at which its steps lose stability."""
    figure = _stacked(1)
    series = derived.edge_series(run)
    figure.add_trace(_line(run, series, name="ratio", colour=POSITIVE, showlegend=False))
    line = dict(color=NEUTRAL, dash="dash", width=1)
    figure.add_shape(type="line", xref="x domain", x0=0, x1=1, y0=1, y1=1, line=line)
    _titles(figure, ["share of the edge"])
    return figure


def lipschitz_figure(run: Run) -> go.Figure:
    """L⁺ and L⁻ on a log axis, and how far the eigenvectors turned since the last measurement."""
    figure = _stacked(2)
    for pair in range(len(run.pair_labels)):
        positive = run["eigenvalue"][:, pair] > 0
        colour = np.where(positive, with_alpha(POSITIVE, 0.3), with_alpha(NEGATIVE, 0.3))
        series = derived.pair_series(run, "lipschitz_drift", pair)
        dots = _line(run, series, name=run.pair_labels[pair], colour=NEUTRAL, showlegend=False)
        dots.update(mode="markers", marker_color=colour.tolist())
        figure.add_trace(dots, row=1, col=1)
        overlap = derived.pair_series(run, "overlap", pair)
        dots = _line(run, overlap, name=run.pair_labels[pair], colour=NEUTRAL, showlegend=False)
        dots.update(mode="markers", marker_color=colour.tolist())
        figure.add_trace(dots, row=2, col=1)
    positive, negative = derived.lipschitz_by_sign(run)
    figure.add_trace(_line(run, positive, name="L⁺, over λ > 0", colour=POSITIVE), row=1, col=1)
    figure.add_trace(_line(run, negative, name="L⁻, over λ ≤ 0", colour=NEGATIVE), row=1, col=1)
    _log_axis(figure, run["lipschitz_drift"])
    figure.update_yaxes(range=[0, 1.05], row=2, col=1)
    _titles(figure, ["L, loss/param³", "overlap |v · v′|"])
    return figure


def trust_figure(run: Run) -> go.Figure:
    """Relative residual of every pair beside the tolerance, and the cost of every measurement."""
    figure = _stacked(2)
    relative, tolerance = derived.relative_residual(run), run.settings.tol
    for pair, pair_label in enumerate(run.pair_labels):
        series = Series(relative[:, pair], run["converged"][:, pair] == 1)
        dots = _line(run, series, name=pair_label, colour=SECOND, showlegend=False)
        figure.add_trace(dots.update(mode="markers"), row=1, col=1)
    failed = np.flatnonzero(run["status"] == Status.FAILED)
    figure.add_trace(
        go.Scatter(
            x=run["iteration"][failed],
            y=np.full(failed.size, tolerance),
            text=[label(reason, 80) for reason in run["reason"][failed]],
            hovertemplate="iteration %{x}: failed<br>%{text}<extra></extra>",
            mode="markers",
            marker=dict(symbol="x", color=ALARM, size=9),
            name="failed",
            showlegend=bool(failed.size),
        ),
        row=1,
        col=1,
    )
    line = dict(color=NEUTRAL, dash="dash", width=1)
    ends = dict(xref="x domain", x0=0, x1=1, y0=tolerance, y1=tolerance)
    figure.add_shape(type="line", **ends, line=line, row=1, col=1)
    _log_axis(figure, relative)
    cost = go.Bar(
        x=run["iteration"],
        y=run["seconds"],
        customdata=run["num_matvecs"],
        hovertemplate="iteration %{x}<br>%{y:.3g} s, %{customdata} HVPs<extra></extra>",
        marker=dict(color=with_alpha(SECOND, 0.6)),
        showlegend=False,
    )
    figure.add_trace(cost, row=2, col=1)
    _titles(figure, ["residual / extreme λ", "seconds"])
    return figure


def _stacked(rows: int) -> go.Figure:
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.09)
    figure.update_layout(template=template(), height=220 * rows, barcornerradius=2)
    return figure


def _titles(figure: go.Figure, titles: list[str]) -> None:
    for row, title in enumerate(titles, 1):
        figure.update_yaxes(title_text=title, row=row, col=1)
    figure.update_xaxes(title_text="iteration", row=len(titles), col=1)


def _log_axis(figure: go.Figure, values: derived.Floats) -> None:
    """Make the first row's axis logarithmic, with a tick per decade where there are several."""
    positive = values[np.isfinite(values) & (values > 0)]
    decades = np.log10(positive.max() / positive.min()) if positive.size else 0.0
    figure.update_yaxes(type="log", exponentformat="e", row=1, col=1)
    if decades >= 2:
        figure.update_yaxes(dtick=max(1, round(decades / 5)), row=1, col=1)


def _line(
    run: Run, series: Series, *, name: str, colour: str, showlegend: bool = True, spread: Any = None
) -> go.Scatter:
    """Draw one series; hollow markers where it did not converge."""
    hover = f"{name} %{{y:.4g}}" + ("" if spread is None else " ± %{customdata:.1e}")
    hollow = ~series.converged & np.isfinite(series.values)
    return go.Scatter(
        x=run["iteration"],
        y=series.values,
        customdata=spread,
        text=np.where(hollow, "<br>not converged", "").tolist(),
        hovertemplate=f"iteration %{{x}}<br>{hover}%{{text}}<extra></extra>",
        mode="lines+markers",
        name=name,
        line=dict(color=colour, width=1.8),
        marker=dict(
            size=np.where(hollow, 9, 6),
            symbol=np.where(hollow, "circle-open", "circle").tolist(),
            line=dict(width=np.where(hollow, 1.6, 0)),
            opacity=1,
        ),
        showlegend=showlegend,
    )


def _band(run: Run, series: Series, residual: derived.Floats, colour: str) -> go.Scatter:
    """Draw λ ± residual, an interval that holds an eigenvalue, as one closed outline."""
    known = np.isfinite(series.values) & np.isfinite(residual)
    x, middle, half = run["iteration"][known], series.values[known], residual[known]
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([middle + half, (middle - half)[::-1]]),
        fill="toself",
        fillcolor=with_alpha(colour, 0.14),
        mode="lines",
        line=dict(width=0),
        hoverinfo="skip",
        showlegend=False,
    )
