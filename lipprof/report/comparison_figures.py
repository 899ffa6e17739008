"""Runs over each other: one figure per series, one colour per run, on the axis they share."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import plotly.graph_objects as go

from lipprof.record import Run
from lipprof.report import derived
from lipprof.report.comparison import By, axis
from lipprof.report.sections import Panel
from lipprof.report.theme import RUNS
from lipprof.report.traces import POINTS, draw_line, log_axis, mark_level, stacked, titles

DASHES = ("solid", "dash", "dot", "dashdot")
TOTAL_POINTS = 6000  # of all lines in a figure
FEWEST_POINTS = 100  # of a line


def comparison_panels(runs: Sequence[Run], names: Sequence[str], by: By) -> list[Panel]:
    """Draw every series that some run has.

    Args:
        runs: the runs.
        names: what to call them.
        by: what to align them by.

    Returns:
        The figures, with how to read them.
    """
    every = [derived.key_series(run) for run in runs]
    panels = []
    for id_, label, title, unit, reading in PANELS:
        series = [mine.get(label) for mine in every]
        known = [s for s in series if s is not None and np.isfinite(s.values).any()]
        if known and not (label == "loss" and by is By.LOSS):
            figure = overlay([axis(run, by) for run in runs], series, names, by=by, title=unit)
            if label.startswith("L"):
                log_axis(figure, np.concatenate([s.values for s in known]))
            if label == "edge of stability":
                mark_level(figure, 1)
            panels.append(Panel(id_, title, reading, figure))
    return panels


def overlay(
    x: Sequence[derived.Floats],
    series: Sequence[derived.Series | None],
    names: Sequence[str],
    *,
    by: By,
    title: str,
) -> go.Figure:
    """Draw one series of several runs; a run keeps its colour in every figure.

    Args:
        x: of every run, its axis.
        series: of every run; None: it has none.
        names: of the runs.
        by: what the axis is.
        title: of the vertical axis.

    Returns:
        The figure.
    """
    figure = stacked(1)
    points = max(FEWEST_POINTS, min(POINTS, TOTAL_POINTS // max(1, len(names))))
    styles = [(colour, dash) for dash, colour in product(DASHES, RUNS)]
    for run, (mine, name) in enumerate(zip(series, names, strict=True)):
        if mine is None:
            continue
        colour, dash = styles[run % len(styles)]
        line = draw_line(x[run], mine, name=name, colour=colour, x_name=by.value, points=points)
        figure.add_trace(line.update(line_dash=dash))
    titles(figure, [title], by.axis_title)
    figure.update_layout(showlegend=True, height=300)
    if by is By.LOSS:
        figure.update_xaxes(autorange="reversed")
    return figure


_CURVATURE = "Above the dashed line the optimizer's own steps are unstable along that direction."
PANELS = (
    ("loss", "loss", "Loss", "loss", "On each run's own measured batch."),
    ("top", "λ largest", "Largest eigenvalue", "λ, loss/param²",
     "Sharpness. Hollow markers did not converge."),
    ("bottom", "λ smallest", "Smallest eigenvalue", "λ, loss/param²",
     "Below zero, the loss curves down in some direction."),
    ("positive", "L⁺ (λ > 0)", "L⁺: how fast positive curvature changes", "L, loss/param³",
     "The higher, the shorter the step for which curvature can be trusted."),
    ("negative", "L⁻ (λ ≤ 0)", "L⁻: how fast negative curvature changes", "L, loss/param³",
     "The same over directions with λ ≤ 0."),
    ("edge", "edge of stability", "Edge of stability", "share of the edge", _CURVATURE),
    ("share", "first-order share", "Share of the parameters recommended first-order", "share",
     "Of the parameters that have an answer."),
)  # fmt: skip
