"""Step-length calibration: what became of the learning rate, in a sentence and as a figure."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from lipprof.advice import verdict
from lipprof.record import CalibrationReading, Run
from lipprof.report.derived import Series
from lipprof.report.figures.theme import POSITIVE, SECOND
from lipprof.report.figures.traces import draw_line, log_axis, mark_level, stacked
from lipprof.report.formats import duration

SIDES = ("first optimizer", "second optimizer")
COLOURS = (SECOND, POSITIVE)


def calibration_sentence(readings: Sequence[CalibrationReading]) -> str | None:
    """Say what became of the learning rate and what that cost; None where nothing was read."""
    if not readings:
        return None
    sides = sorted({reading.side for reading in readings})
    said = []
    for side in sides:
        last = [reading for reading in readings if reading.side == side][-1]
        name = f"{SIDES[side]}: " if len(sides) > 1 else ""
        said.append(
            f"{name}{verdict(last.outcome, last.factor)} (lr {last.learning_rate:.3g}, iteration "
            f"{last.iteration:,})"
        )
    gradients = sum(reading.num_gradients for reading in readings)
    seconds = duration(sum(reading.seconds for reading in readings))
    return f"Calibration: {'; '.join(said)}; {gradients:,} gradients, {seconds}."


def calibration_figure(run: Run) -> go.Figure:
    """The learning rate over the given one while it was calibrated, and the room of its steps."""
    readings = run.calibration
    figure = stacked("learning rate / given", "room, in steps")
    sides = sorted({reading.side for reading in readings})
    for side in sides:
        own = [reading for reading in readings if reading.side == side]
        x = np.array([reading.iteration for reading in own])
        for row, name in enumerate(("factor", "room"), 1):
            values = np.array([getattr(reading, name) for reading in own])
            series = Series(values, np.ones(len(own), bool))
            line = draw_line(
                x,
                series,
                name=SIDES[side],
                colour=COLOURS[side],
                showlegend=len(sides) > 1 and row == 1,
            )
            figure.add_traces(line, row, 1)
    for row, name in enumerate(("factor", "room"), 1):
        log_axis(figure, np.array([getattr(reading, name) for reading in readings]), row)
        mark_level(figure, 1, row)
    return figure
