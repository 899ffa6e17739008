"""Whether Newton's step along an eigenvector beat gradient descent's, and L foretells it (App. E).

Shapes: M measurements, P pairs.
"""

from dataclasses import dataclass, replace

import numpy as np
import plotly.graph_objects as go

from lipprof.advice import Correlation, correlate
from lipprof.record import Run
from lipprof.report import derived, estimators
from lipprof.report.derived import Floats
from lipprof.report.figures.lipschitz import by_sign
from lipprof.report.figures.traces import draw_dots, stacked
from lipprof.report.formats import number, percent

LEAST_P = 0.05


@dataclass(frozen=True, slots=True)
class Superiority:
    """Over all converged pairs with λ > 0."""

    won: float  # share of pairs whose loss Newton's step lowered further
    plain: Correlation  # of superiority and L
    given_scale: Correlation  # of their ranks, given λ and γ, which both follow


def superiority(run: Run) -> Floats:
    """Descent of Newton's step minus that of gradient descent's, (M, P); loss."""
    return run["newton_descent"] - run["gradient_descent"]


def judge(run: Run) -> Superiority | None:
    """Correlate superiority with L over the convex pairs of a run.

    Returns:
        What was found; None where no trial steps were taken.
    """
    among = (run["eigenvalue"] > 0) & (run["converged"] == 1) & np.isfinite(superiority(run))
    if not among.any():
        return None
    superior = superiority(run)[among]
    lipschitz = run[estimators.serving(run)][among]
    controls = [run["eigenvalue"][among], -run["grad_projection"][among]]
    return Superiority(
        won=float((superior > 0).mean()),
        plain=correlate(superior, lipschitz),
        given_scale=correlate(superior, lipschitz, controls, ranks=True),
    )


def sentence(found: Superiority) -> str:
    """Say how often Newton's step won, and what L has to do with it."""
    won = f"Newton's step lowered the loss further along {percent(found.won)} of convex pairs."
    if found.given_scale.missing:
        return f"{won} Too few measurements to tell whether L foretells it."
    plain, given = found.plain, found.given_scale
    verdict = "foretells" if given.p < LEAST_P and given.r < 0 else "does not foretell"
    return (
        f"{won} Its superiority and L correlate by r = {number(plain.r)}; by ranks, given λ and γ, "
        f"by {number(given.r)} (p = {number(given.p)}, measurements taken as independent): a small "
        f"L {verdict} it here."
    )


def superiority_figure(run: Run) -> go.Figure:
    """Superiority against L, one marker per pair and measurement."""
    figure = stacked("superiority, loss", x_title="L, loss/param³")
    name = estimators.serving(run)
    superior = superiority(run)
    for pair, label in enumerate(run.pair_labels):
        known = derived.lipschitz_series(run, name, pair)
        drawn = np.where(known.values > 0, superior[:, pair], np.nan)
        series = replace(known, values=drawn)
        for colour, mine in by_sign(series, run["eigenvalue"][:, pair] > 0):
            dots = draw_dots(
                known.values,
                mine,
                name=f"{label}: superiority",
                colour=colour,
                among=len(run.pair_labels),
                x_name="L",
            )
            figure.add_traces(dots, 1, 1)
    figure.update_xaxes(type="log", exponentformat="e", row=1, col=1)
    return figure
