"""Figures of how curvature moves: L⁺ and L⁻, the pairs that carry them, L by each estimator."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from lipprof.record import Match, Run
from lipprof.report import derived, estimators
from lipprof.report.derived import Series
from lipprof.report.figures.labels import label
from lipprof.report.figures.theme import NEGATIVE, NEUTRAL, POSITIVE, SECOND, with_alpha
from lipprof.report.figures.traces import draw_dots, draw_line, log_axis, stacked

EVENTS = {
    Match.CROSSED: "crossed another pair",
    Match.REGROUPED: "not to be told from others",
    Match.NEW: "no predecessor",
}


def lipschitz_figure(run: Run) -> go.Figure:
    """L⁺ and L⁻ on a log axis, and how far the eigenvectors turned since the last measurement."""
    figure, x = stacked("L, loss/param³", "overlap |v · v′|"), run["iteration"]
    serving = estimators.serving(run)
    for pair, name in enumerate(run.pair_labels):
        positive = run["eigenvalue"][:, pair] > 0
        rows = [(1, derived.lipschitz_series(run, serving, pair))]
        rows += [(2, overlap) for overlap in _overlaps(run, pair)]
        for row, series in rows:
            for colour, mine in by_sign(series, positive):
                figure.add_traces(
                    draw_dots(x, mine, name=name, colour=colour, among=2 * len(run.pair_labels)),
                    row,
                    1,
                )
    positive, negative = derived.lipschitz_by_sign(run)
    for series, name, colour in (
        (positive, "L⁺, over λ > 0", POSITIVE),
        (negative, "L⁻, over λ ≤ 0", NEGATIVE),
    ):
        figure.add_traces(draw_line(x, series, name=name, colour=colour), 1, 1)
    log_axis(figure, run[serving])
    figure.update_yaxes(range=[0, 1.05], row=2, col=1)
    return figure


def by_sign(series: Series, positive: NDArray[np.bool_]) -> Iterator[tuple[str, Series]]:
    """Take a series apart by the sign of its eigenvalue.

    Args:
        series: (M,).
        positive: where λ > 0, (M,).

    Yields:
        A faint colour and the part that has it, where there is one.
    """
    for sign, colour in ((positive, POSITIVE), (~positive, NEGATIVE)):
        mine = np.where(sign, series.values, np.nan)
        if np.isfinite(mine).any():
            yield with_alpha(colour, 0.3), replace(series, values=mine)


def _overlaps(run: Run, pair: int) -> list[Series]:
    """One pair's overlap, apart where something happened to it."""
    overlap, match = run["overlap"][:, pair], run["match"][:, pair]
    plain = ~np.isin(match, list(EVENTS))
    every = [Series(np.where(plain, overlap, np.nan), np.ones(len(run), bool))]
    for event, words in EVENTS.items():
        happened = match == event
        if happened.any():
            every.append(Series(np.where(happened, overlap, np.nan), ~happened, words))
    return every


def rotation_figure(run: Run) -> go.Figure:
    """How fast the eigenbasis turns, and the angle between successive spans of either end."""
    figure = stacked("L_R, 1/param", "widest angle, degrees")
    x, certain = run["iteration"], np.ones(len(run), bool)
    series = Series(run["rotation"], certain)
    line = draw_line(x, series, name="L_R", colour=SECOND, showlegend=False)
    figure.add_traces(line, 1, 1)
    log_axis(figure, run["rotation"])
    angles = np.degrees(run["principal_angle"])
    ends = (
        (slice(0, run.top), "largest λ", POSITIVE),
        (slice(run.top, None), "smallest λ", NEGATIVE),
    )
    for places, name, colour in ends:
        known = np.isfinite(angles[:, places]).any(axis=1)
        widest = np.where(
            known, np.nan_to_num(angles[:, places], nan=-1).max(1, initial=-1), np.nan
        )
        if known.any():
            line = draw_line(x, Series(widest, certain), name=name, colour=colour)
            figure.add_traces(line, 2, 1)
    figure.update_yaxes(range=[0, 92], row=2, col=1)
    return figure


def estimators_figure(run: Run) -> go.Figure:
    """Every recorded estimate of L of the most extreme pair at each end, on log axes."""
    ends = derived.extreme_pairs(run)
    figure = stacked(*(f"L of {label(run.pair_labels[pair])}, loss/param³" for pair in ends))
    colours = dict(zip(estimators.LABELS, (NEUTRAL, SECOND, POSITIVE), strict=True))
    for row, pair in enumerate(ends, 1):
        for name in estimators.recorded(run):
            series = derived.lipschitz_series(run, name, pair)
            line = draw_line(
                run["iteration"],
                series,
                name=estimators.LABELS[name],
                colour=colours[name],
                showlegend=row == 1,
            )
            figure.add_traces(line, row, 1)
        noise = run["lipschitz_drift"][:, pair] * np.sqrt(run["lipschitz_noise"][:, pair])
        if np.isfinite(noise).any():
            floor = Series(noise, np.ones(len(run), bool))
            line = draw_line(
                run["iteration"],
                floor,
                name="batch noise in drift",
                colour=NEUTRAL,
                dash="dot",
                showlegend=row == 1,
            )
            figure.add_traces(line, row, 1)
        log_axis(figure, run["lipschitz_along"][:, pair], row)
    return figure
