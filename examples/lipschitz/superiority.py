"""Figure 3 and table 1: does Newton's step fare worse where L⁺ is large?

The paper correlates the superiority S = descent of Newton's step − descent of SGD's, with L⁺.  Both
have units, and both follow the scale of the surface: to second order S = (γ²/2λ) (1 − lr λ)², which
rises with γ and, where lr λ ≫ 1, with λ, whatever L.  So three more numbers stand beside Pearson's:

* Spearman's, which the few largest values do not decide;
* Spearman's, given λ and γ;
* Spearman's of S/(γ²/2λ) with L γ/λ², both free of units.

And one about why: how often the loss after Newton's step lies above its quadratic model.  L bounds
an absolute value; the descent changes with D³f[v, v, v], which has a sign.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from examples.lipschitz.trials import Trial
from lipprof.advice import Correlation, correlate

_TOP = 0


@dataclass(frozen=True, slots=True)
class Correlations:
    """Of superiority and L⁺ over all measurements of some trials."""

    pearson: Correlation
    spearman: Correlation
    given_scale: Correlation
    unit_free: Correlation


def correlations(trials: Sequence[Trial], estimator: str) -> Correlations:
    """Correlate superiority with L⁺ as an estimator tells it.

    Args:
        trials: whose measurements are pooled.
        estimator: key of ``trials.ESTIMATES``.

    Returns:
        The correlations.
    """
    superiority = _pooled([trial.superiority for trial in trials])
    curvature = _pooled([trial.curvature for trial in trials])
    slope = _pooled([trial.slope for trial in trials])
    lipschitz = _pooled([trial.estimates[estimator] for trial in trials])
    return Correlations(
        pearson=correlate(superiority, lipschitz),
        spearman=correlate(superiority, lipschitz, ranks=True),
        given_scale=correlate(superiority, lipschitz, [curvature, slope], ranks=True),
        unit_free=correlate(
            superiority / (slope**2 / (2 * curvature)), lipschitz * slope / curvature**2, ranks=True
        ),
    )


def share_above_quadratic(trials: Sequence[Trial]) -> float:
    """Share of measurements where Newton's step along the top pair ends above its quadratic."""
    excess = _pooled([trial.excess for trial in trials])
    return float((excess[np.isfinite(excess)] > 0).mean())


def _pooled(series: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([each[:, _TOP] for each in series])
