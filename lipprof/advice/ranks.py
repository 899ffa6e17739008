"""Ranking units by a number that is known within bounds: who belongs to the top share?

A unit's position is the share of the weight that ranks above it, with half of itself and half of
those that equal it: 0 at the top, 1 at the bottom.  It belongs to the top share s where its
position p is at most s, so that whole units come as near to the share as they can, equal ones stay
together, and the order in which units are listed does not matter.  How clearly it belongs there is
the ratio of the odds, s/(1 − s) over p/(1 − p).
"""

import numpy as np
from numpy.typing import NDArray

from lipprof.advice.evidence import Numbers
from lipprof.advice.rule import Ratio, over


def positions(low: Numbers, high: Numbers, weights: NDArray[np.number]) -> tuple[Numbers, Numbers]:
    """Find the worst and the best position of every unit that the bounds allow.

    Args:
        low: lower bound of the number that ranks, (T,); units with a NaN do not take part.
        high: upper bound.
        weights: of the units.

    Returns:
        Positions with the unit at its lower and all others at their upper bound, and the reverse.
    """
    known = ~(np.isnan(low) | np.isnan(high))
    worst, best = np.full(known.shape, np.nan), np.full(known.shape, np.nan)
    if known.any():
        worst[known] = _position(low[known], high[known], weights[known])
        best[known] = _position(high[known], low[known], weights[known])
    return worst, best


def odds_ratio(share: float, worst: Numbers, best: Numbers) -> Ratio:
    """Tell how clearly units belong to the top share; 1 and above: they do."""
    low, high = (over(share * (1 - position), (1 - share) * position) for position in (worst, best))
    return Ratio(low, high)


def _position(values: Numbers, others: Numbers, weights: NDArray[np.number]) -> Numbers:
    order = np.argsort(others)
    ranked = others[order]
    up_to = np.concatenate([[0.0], np.cumsum(weights[order], dtype=np.float64)])
    total = up_to[-1]
    above = total - up_to[np.searchsorted(ranked, values, "right")]
    reached = total - up_to[np.searchsorted(ranked, values, "left")]
    # each unit met itself among the others, at its other bound
    itself = weights * ((others > values).astype(np.float64) + (others >= values)) / 2
    return ((above + reached) / 2 - itself + weights / 2) / total
