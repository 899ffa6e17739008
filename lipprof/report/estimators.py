"""The estimators of L per pair: which were recorded, how far they agree, what is batch noise.

Shapes: M measurements, P pairs.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lipprof.advice import MOSTLY_NOISE
from lipprof.errors import LipprofError
from lipprof.record import EIGENARC, LIPSCHITZ, Run
from lipprof.report.formats import number, percent

LABELS = {
    "lipschitz_drift": "drift",
    "lipschitz_along": "exact",
    "lipschitz_eigenarc": "EigenARC",
}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two estimators are apart, over converged pairs of which neither is a bound only."""

    first: str  # labels
    second: str
    ratio: float  # median of second / first
    factor: float  # median of the larger over the smaller
    count: int  # of pairs and measurements


def recorded(run: Run) -> list[str]:
    """Names of the variables of the estimators that a run has numbers of."""
    return [name for name in LABELS if np.isfinite(run[name]).any()]


def serving(run: Run) -> str:
    """Name of the variable that ELMO's step, the regret, L⁺ and L⁻ rest on."""
    try:
        return LIPSCHITZ[run.settings.lipschitz[0]]
    except LipprofError:  # a damaged header costs no more than it must
        return LIPSCHITZ["drift"]


def bounds(run: Run, name: str) -> NDArray[np.str_]:
    """What an estimate is worth, (M, P): ``≤`` or ``≥`` where it is only a bound, else empty.

    Drift that is mostly batch noise is an upper bound.  So is an L that EigenARC lowered because
    the loss fell as promised: it was not tried again.  Where no raise helped, L is a lower bound.

    Returns:
        One character or none.
    """
    bound = np.full(run[name].shape, "", "<U1")
    if name == LIPSCHITZ["drift"]:
        bound[run["lipschitz_noise"] > MOSTLY_NOISE] = "≤"
    if name == LIPSCHITZ["eigenarc"]:
        bound[run["eigenarc_outcome"] == EIGENARC.index("lowered")] = "≤"
        bound[run["eigenarc_outcome"] == EIGENARC.index("gave_up")] = "≥"
    return bound


def agreements(run: Run) -> list[Agreement]:
    """Compare the estimators pairwise.

    Returns:
        One for every two that have a pair in common.
    """
    found = []
    for first, second in combinations(recorded(run), 2):
        both = (run[first] > 0) & (run[second] > 0) & (run["converged"] == 1)
        both &= (bounds(run, first) == "") & (bounds(run, second) == "")
        logs = np.log(run[second][both]) - np.log(run[first][both])
        logs = logs[np.isfinite(logs)]
        if logs.size:
            ratio, factor = np.exp(np.median(logs)), np.exp(np.median(np.abs(logs)))
            labels = LABELS[first], LABELS[second]
            found.append(Agreement(*labels, float(ratio), float(factor), logs.size))
    return found


def agreement_sentences(run: Run) -> list[str]:
    """Say how far the estimators agree, and how much of the drift is mostly batch noise."""
    told = [
        f"In the median {a.second} is {number(a.ratio)} × {a.first}, and half of {a.count:,} cases "
        f"agree within a factor of {number(a.factor)}."
        for a in agreements(run)
    ]
    judged = np.isfinite(run["lipschitz_noise"])
    if judged.any():
        share = float((bounds(run, LIPSCHITZ["drift"]) == "≤")[judged].mean())
        told.append(f"{percent(share)} of the drifts are mostly batch noise.")
    return told
