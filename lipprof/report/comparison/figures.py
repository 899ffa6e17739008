"""Runs over each other: one figure per series, one colour per run, on the axis they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, product

import numpy as np
import plotly.graph_objects as go

from lipprof.record import Run
from lipprof.report import derived
from lipprof.report.comparison.compare import By, axis
from lipprof.report.figures.theme import RUNS
from lipprof.report.figures.traces import POINTS, draw_line, log_axis, mark_level, stacked, titles
from lipprof.report.sections import Panel

DASHES = ("solid", "dash", "dot", "dashdot")
TOTAL_POINTS = 6000  # of all lines in a figure
FEWEST_POINTS = 100  # of a line


@dataclass(frozen=True, slots=True)
class Track:
    """What is drawn of one run; the file may be closed by then."""

    name: str
    axes: dict[By, derived.Floats]
    series: dict[str, derived.Series]


def track(run: Run, name: str) -> Track:
    """Take from a run what is drawn of it.

    Args:
        run: the run.
        name: what to call it.

    Returns:
        Its axes and ``derived.key_series``.
    """
    return Track(name, {by: axis(run, by) for by in By}, derived.key_series(run))


def comparison_panels(tracks: Sequence[Track], by: By) -> list[Panel]:
    """Draw every series that some run has.

    Args:
        tracks: the runs.
        by: what to align them by.

    Returns:
        The figures, with how to read them.
    """
    panels = []
    for id_, label, title, unit, reading in PANELS:
        mine = [t.series[label].values for t in tracks if label in t.series]
        known = any(np.isfinite(values).any() for values in mine)
        if known and not (label == "loss" and by is By.LOSS):
            figure = overlay(tracks, label, by=by, title=unit)
            if label.startswith("L"):
                log_axis(figure, np.concatenate(mine))
            if label == "edge of stability":
                mark_level(figure, 1)
            panels.append(Panel(id_, title, reading, figure))
    return panels


def overlay(tracks: Sequence[Track], label: str, *, by: By, title: str) -> go.Figure:
    """Draw one series of several runs; a run keeps its colour in every figure.

    Args:
        tracks: the runs.
        label: of the series.
        by: what the axis is.
        title: of the vertical axis.

    Returns:
        The figure.
    """
    figure = stacked(1)
    points = max(FEWEST_POINTS, min(POINTS, TOTAL_POINTS // max(1, len(tracks))))
    styles = cycle((colour, dash) for dash, colour in product(DASHES, RUNS))
    for run, (colour, dash) in zip(tracks, styles, strict=False):
        if label in run.series:
            line = draw_line(
                run.axes[by],
                run.series[label],
                name=run.name,
                colour=colour,
                x_name=by.value,
                dash=dash,
                points=points,
            )
            figure.add_trace(line)
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
