"""Does a small Lipschitz parameter make Newton's step the better one?  App. E, Fig. 3, Table 1.

At each measurement the loss is evaluated after two trial steps along an eigenvector, Newton's
x = γ/|λ| (or γ/λ, for λ > 0 alone) and SGD's x = lr·γ, and quasi-Newton superiority is the descent
of the first minus that of the second.  The paper correlates it with L over measurements.

L, λ and γ move together along a run, so Pearson's r alone may be the work of λ or γ.  The partial
correlation here is that of what is left of both series after a linear regression on controls such
as log|λ| and log γ.  With r, its p-value is that of t = r √(ν/(1 − r²)) under Student's t with
ν = n − 2 − q degrees of freedom, q the rank of the controls; q = 0 is Pearson's test.  On ranks the
same is Spearman's.  All p-values take measurements as independent; along one trajectory they are
not, and p is then too small.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from lipprof.errors import ShapeError

Floats = NDArray[np.float64]

SPARE = 4
"""Samples needed beyond the number of controls: two degrees of freedom for the p-value."""

EXPLAINED = 1e-10
"""A residual below this share of its series is rounding: the controls explain all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """A correlation over measurements; NaN where it is undefined or samples are missing."""

    r: float
    p: float  # two-sided, of no correlation
    count: int  # samples that were finite, and used
    missing: int  # how many more it takes; 0: enough


def trial_steps(slope: Floats, curvature: Floats, *, lr: float) -> tuple[Floats, Floats]:
    """Displacements along an eigenvector that Newton and SGD would take.

    Args:
        slope: γ = |g·v|, loss/param.
        curvature: λ, loss/param².
        lr: of SGD, param²/loss.

    Returns:
        γ/|λ| and lr·γ, in the direction of descent; param.  Newton's is NaN where λ = 0.
    """
    size = np.where(curvature != 0, np.abs(curvature), np.nan)
    return slope / size, lr * slope


def correlate(
    superiorities: Floats,
    lipschitz: Floats,
    controls: Sequence[Floats] = (),
    *,
    log_lipschitz: bool = False,
    ranks: bool = False,
) -> Correlation:
    """Correlate superiority with L over measurements, given the controls.

    Args:
        superiorities: one per measurement; loss.
        lipschitz: L at the same measurements; loss/param³.
        controls: series to regress out of both, such as log|λ| and log γ; none: Pearson's r.
        log_lipschitz: take log L, which spans decades; L ≤ 0 is left out then.
        ranks: replace every series by its ranks: Spearman's, the partial one with ``controls``.

    Returns:
        The correlation over the measurements at which every series is finite.  r and p are NaN
        where samples are missing and where a series is constant, or is so given the controls.

    Raises:
        ShapeError: the series differ in length.
    """
    series = [np.asarray(each, np.float64) for each in (superiorities, lipschitz, *controls)]
    lengths = [len(each) for each in series]
    if len(set(lengths)) != 1:
        raise ShapeError(
            f"The series have {lengths} entries: give one per measurement in each, NaN where a "
            "number is unknown."
        )
    if log_lipschitz:
        positive = np.where(series[1] > 0, series[1], np.nan)
        series[1] = np.log(positive)
    finite = np.isfinite(series).all(axis=0)
    count = int(finite.sum())
    missing = max(0, len(controls) + SPARE - count)
    if missing:
        return Correlation(r=np.nan, p=np.nan, count=count, missing=missing)
    columns = np.stack([_standardised(each[finite], ranks) for each in series])
    r, freedom = _partial(columns[0], columns[1], columns[2:])
    return Correlation(r=r, p=_p_value(r, freedom), count=count, missing=0)


def _standardised(series: Floats, ranks: bool) -> Floats:
    """Centred and of length 1, so that neither units nor decades matter; 0 for a constant one."""
    if np.ptp(series) == 0:
        return np.zeros_like(series)
    series = _ranks(series) if ranks else series / np.abs(series).max()
    series = series - series.mean()
    return series / np.linalg.norm(series)


def _ranks(series: Floats) -> Floats:
    """Ranks from 1, ties at their mean: ``scipy.stats.rankdata``, whose import takes a second."""
    _, places, counts = np.unique(series, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]


def _partial(x: Floats, y: Floats, controls: Floats) -> tuple[float, int]:
    """Correlation of what is left of x and y after the controls, and its degrees of freedom."""
    _, sizes, directions = np.linalg.svd(controls, full_matrices=False)
    basis = directions[sizes > EXPLAINED]
    rest = [each - basis.T @ (basis @ each) for each in (x, y)]
    lengths = [float(np.linalg.norm(each)) for each in rest]
    freedom = len(x) - 2 - len(basis)
    if min(lengths) < EXPLAINED:
        return np.nan, freedom
    return float(np.clip(rest[0] @ rest[1] / (lengths[0] * lengths[1]), -1, 1)), freedom


def _p_value(r: float, freedom: int) -> float:
    if abs(r) == 1:
        return 0.0
    t = abs(r) * np.sqrt(freedom / (1 - r**2))
    return float(2 * stdtr(freedom, -t))
