"""Fewer points with the same picture: M4 (Jugel et al. 2014), buckets that keep their extremes.

Consecutive values share a bucket, and of each bucket the first, the smallest, the largest and the
last value stay.  Drawn as a line with at least as many buckets as pixels, nothing is lost: no spike
disappears, and a gap as long as a bucket stays one.  Cost: O(n), and a sort of the positions kept.
"""

import numpy as np
from numpy.typing import NDArray

PER_BUCKET = 4


def keep_extremes(values: NDArray[np.floating], limit: int) -> NDArray[np.intp]:
    """Choose which values of a series to draw.

    Args:
        values: (n,), NaN where nothing is known.
        limit: how many at most; at least 4.

    Returns:
        Positions in rising order, all of them where ``n <= limit``; the largest and the smallest
        value of the whole series are among them.
    """
    n = values.size
    if n <= limit:
        return np.arange(n)
    edges = np.linspace(0, n, max(1, limit // PER_BUCKET) + 1).astype(np.intp)
    starts, stops = edges[:-1], edges[1:]
    inside = starts[:, None] + np.arange(np.diff(edges).max())
    mine = np.where(inside < stops[:, None], values[np.minimum(inside, n - 1)], np.nan)
    lowest = np.where(np.isnan(mine), np.inf, mine).argmin(axis=1)
    highest = np.where(np.isnan(mine), -np.inf, mine).argmax(axis=1)
    return np.unique(np.concatenate([starts, starts + lowest, starts + highest, stops - 1]))
