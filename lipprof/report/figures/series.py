"""Figures over the iterations: pure functions from a run to a figure of plotly.

Text from the file goes through ``labels.label``: plotly reads a subset of HTML in axes and hover
text.
"""

import numpy as np
import plotly.graph_objects as go

from lipprof.record import Run, Status
from lipprof.report import derived
from lipprof.report.derived import Foreseen, Series
from lipprof.report.figures.decimate import keep_extremes
from lipprof.report.figures.labels import label
from lipprof.report.figures.theme import (
    ALARM,
    FIRST,
    NEGATIVE,
    NEUTRAL,
    POSITIVE,
    SECOND,
    with_alpha,
)
from lipprof.report.figures.traces import (
    POINTS,
    draw_band,
    draw_dots,
    draw_line,
    log_axis,
    mark_level,
    stacked,
)
from lipprof.report.formats import number

HEADROOM = 1.5  # of the axis of the largest eigenvalues; 2/lr may leave it
LIMIT_NAME = "2/lr (limit of plain gradient descent)"


def training_figure(run: Run) -> go.Figure:
    """Loss and gradient norm on the measured batch."""
    figure, x = stacked("loss", "gradient norm, loss/param"), run["iteration"]
    certain = np.ones(len(run), bool)
    for row, (name, title) in enumerate((("loss", "loss"), ("grad_norm", "gradient norm")), 1):
        series = Series(run[name], certain)
        line = draw_line(x, series, name=title, colour=SECOND, showlegend=False)
        figure.add_traces(line, row, 1)
    return figure


def eigenvalues_figure(run: Run) -> go.Figure:
    """Eigenvalues at both ends with residual bands, and gradient descent's stability limit."""
    figure = stacked("largest λ, loss/param²", "smallest λ, loss/param²")
    x = run["iteration"]
    for pair, name in enumerate(run.pair_labels):
        row, colour = (1, POSITIVE) if pair < run.top else (2, NEGATIVE)
        rank = pair if pair < run.top else len(run.pair_labels) - 1 - pair
        series, residual = derived.pair_series(run, "eigenvalue", pair), run["residual"][:, pair]
        figure.add_trace(draw_band(x, series, residual, colour), row=row, col=1)
        shade = with_alpha(colour, max(0.3, 0.85**rank))
        line = draw_line(x, series, name=name, colour=shade, spread=residual, showlegend=False)
        figure.add_traces(line, row, 1)
    _add_limit(figure, run)
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
        series = Series(limit, limit > 0)
        x = run["iteration"]
        line = draw_line(x, series, name=LIMIT_NAME, colour=NEUTRAL, mode="lines", dash="dash")
        figure.add_traces(line, 1, 1)
    else:
        figure.add_annotation(
            text=f"{LIMIT_NAME} ≥ {number(np.nanmin(limit))}: above the plot",
            xref="paper", yref="paper", x=1, y=1, xanchor="right", yanchor="top", showarrow=False,
        )  # fmt: skip


def share_figure(run: Run) -> go.Figure:
    """Share of the parameters on the first-order side: as recommended, and as AMOS ran it."""
    figure, certain = stacked("first-order share"), np.ones(len(run), bool)
    sides = (("recommendation", "recommended", SECOND), ("assigned", "AMOS ran", FIRST))
    for variable, name, colour in sides:
        share = derived.first_order_share(run, variable)
        if np.isfinite(share).any():
            line = draw_line(run["iteration"], Series(share, certain), name=name, colour=colour)
            figure.add_traces(line)
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    return figure


def steps_figure(run: Run) -> go.Figure:
    """Lengths of three steps along the most extreme pair at each end, on log axes."""
    ends = derived.extreme_pairs(run)
    figure = stacked(*(f"step along {label(run.pair_labels[pair])}, param" for pair in ends))
    for row, pair in enumerate(ends, 1):
        own = run["step_projection"][:, pair]
        certain = run["converged"][:, pair] == 1
        steps = (
            ("the optimizer's", Series(np.abs(own), ~(own < 0), "against the descent"), FIRST),
            ("ELMO's", Series(run["elmo_step"][:, pair], certain), POSITIVE),
            ("Newton's, γ/|λ|", Series(derived.newton_step(run)[:, pair], certain), SECOND),
        )
        for name, series, colour in steps:
            line = draw_line(
                run["iteration"], series, name=name, colour=colour, showlegend=row == 1
            )
            figure.add_traces(line, row, 1)
        log_axis(figure, np.concatenate([series.values for _, series, _ in steps]), row)
    return figure


def edge_figure(run: Run) -> go.Figure:
    """Top eigenvalue as the optimizer sees it, over the one at which its steps lose stability."""
    figure, series = stacked("share of the edge"), derived.edge_series(run)
    line = draw_line(run["iteration"], series, name="ratio", colour=POSITIVE, showlegend=False)
    figure.add_traces(line)
    mark_level(figure, 1)
    log_axis(figure, series.values)
    return figure


def descents_figure(run: Run, foreseen: Foreseen) -> go.Figure:
    """Change of the loss along both next steps; below, along the one that AMOS took."""
    figure, certain = stacked("change, loss", "of the step taken"), np.ones(len(run), bool)
    lines = (
        (1, "all by the first", foreseen.first, FIRST),
        (1, "by the second", foreseen.second, SECOND),
        (2, "foreseen", foreseen.ran, NEUTRAL),
        (2, "achieved", run["achieved_descent"], POSITIVE),
    )
    for row, name, values, colour in lines:
        line = draw_line(run["iteration"], Series(values, certain), name=name, colour=colour)
        figure.add_traces(line, row, 1)
    return figure


def trust_figure(run: Run) -> go.Figure:
    """Relative residual of every pair beside the tolerance, and the cost of every measurement."""
    figure = stacked("residual / extreme λ", "seconds")
    relative, tolerance = derived.relative_residual(run), run.settings.tol
    for pair, name in enumerate(run.pair_labels):
        series = Series(relative[:, pair], run["converged"][:, pair] == 1)
        dots = draw_dots(
            run["iteration"], series, name=name, colour=SECOND, among=relative.shape[1]
        )
        figure.add_traces(dots, 1, 1)
    figure.add_trace(_failures(run, tolerance), row=1, col=1)
    mark_level(figure, tolerance)
    log_axis(figure, relative)
    keep = keep_extremes(run["seconds"], POINTS)
    cost = go.Bar(
        x=run["iteration"][keep],
        y=run["seconds"][keep],
        customdata=run["num_matvecs"][keep],
        hovertemplate="iteration %{x}<br>%{y:.3g} s, %{customdata} HVPs<extra></extra>",
        marker=dict(color=with_alpha(SECOND, 0.6)),
        showlegend=False,
    )
    figure.add_trace(cost, row=2, col=1)
    return figure


def _failures(run: Run, height: float) -> go.Scatter:
    failed = np.flatnonzero(run["status"] == Status.FAILED)
    failed = failed[:: 1 + failed.size // POINTS]
    return go.Scatter(
        x=run["iteration"][failed],
        y=np.full(failed.size, height),
        text=[label(reason, 80) for reason in run["reason"][failed]],
        hovertemplate="iteration %{x}: failed<br>%{text}<extra></extra>",
        mode="markers",
        marker=dict(symbol="x", color=ALARM, size=9),
        name="failed",
        showlegend=bool(failed.size),
    )
