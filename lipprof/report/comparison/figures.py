"""Runs over each other: one figure per series, one colour per run, on the axis they share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import cycle, product

import numpy as np
import plotly.graph_objects as go

from lipprof.record import Run
from lipprof.report import derived
from lipprof.report.comparison.compare import By, axis
from lipprof.report.figures.theme import RUNS, Trace
from lipprof.report.figures.traces import (
    POINTS,
    draw_line,
    log_axis,
    mark_level,
    stacked,
)
from lipprof.report.sections import Panel

DASHES = ("solid", "dash", "dot", "dashdot")
TOTAL_POINTS = 6000  # of all lines in a figure
FEWEST_POINTS = 100  # of a line
KEPT_LINES = 512
HEIGHT = 300  # px


@dataclass(frozen=True, eq=False)
class Track:
    """What is drawn of one run; the file may be closed by then.  Equal to itself only."""

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


@dataclass(frozen=True, slots=True)
class Overlay:
    """One series of several runs: the figure without its lines, and these."""

    frame: Panel
    lines: list[Trace]

    def panel(self) -> Panel:
        """Put the lines into the figure."""
        whole = go.Figure(self.lines, self.frame.figure.layout)
        return replace(self.frame, draw=lambda: whole)


def comparison_panels(tracks: Sequence[Track], by: By) -> list[Panel]:
    """Draw every series that some run has; see ``overlays``."""
    return [overlay.panel() for overlay in overlays(tracks, by)]


def overlays(tracks: Sequence[Track], by: By) -> list[Overlay]:
    """Gather every series that some run has.

    Args:
        tracks: the runs.
        by: what to align them by.

    Returns:
        What to draw, with how to read it; a run has the same colour everywhere.
    """
    found = []
    points = max(FEWEST_POINTS, min(POINTS, TOTAL_POINTS // max(1, len(tracks))))
    styles = cycle((colour, dash) for dash, colour in product(DASHES, RUNS))
    styled = list(zip(tracks, styles, strict=False))
    for id_, label, title, unit, reading in PANELS:
        mine = [t.series[label].values for t in tracks if label in t.series]
        known = any(np.isfinite(values).any() for values in mine)
        if not known or (label == "loss" and by is By.LOSS):
            continue
        frame = _frame(unit, by)
        if label.startswith("L"):
            log_axis(frame, np.concatenate(mine))
        if label == "edge of stability":
            mark_level(frame, 1)
        drawn = [_line(t, label, by, style, points) for t, style in styled if label in t.series]
        lines = [trace for traces in drawn for trace in traces]
        panel = Panel(id_, title, reading, partial(go.Figure, frame), HEIGHT)
        found.append(Overlay(panel, lines))
    return found


def _frame(title: str, by: By) -> go.Figure:
    figure = stacked(title, x_title=by.axis_title)
    figure.update_layout(showlegend=True, height=HEIGHT)
    if by is By.LOSS:
        figure.update_xaxes(autorange="reversed")
    return figure


@lru_cache(KEPT_LINES)
def _line(run: Track, label: str, by: By, style: tuple[str, str], points: int) -> list[Trace]:
    """Draw one line; what is drawn again are the same objects."""
    colour, dash = style
    return draw_line(
        run.axes[by],
        run.series[label],
        name=run.name,
        colour=colour,
        x_name=by.value,
        dash=dash,
        points=points,
        marked=points // 4,
    )


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
