"""How far the actual step is from ELMO's, and what it gives away in the worst case (Thm 3.3).

With R = √(λ² + 2Lγ) = λ + Lx*, the model's curvature M″ at its minimiser x*, and δ = ΔΔ′ = x/x* − 1
(Notation 8), Taylor's series of M around x* ends after three terms, and for x ≥ 0

    M(x*) = −x*² (λ + 2R)/6
    M(x) − M(x*) = R (x*δ)²/2 + L (x*δ)³/6
    1 − M(x)/M(x*) = δ² (3R + Lx*δ)/(2R + λ) = δ² (1 + q (1 + δ)),    q = Lx*/(2R + λ) in [0, 2].

This is the closed form of eq. 12, and it is a cubic in δ.  The quadratic that the paper speaks of
is its part 3Rδ²/(2R + λ): exact where L = 0, otherwise too low for a step that overshoots (δ > 0)
and too high for one that falls short; without a step at all (δ = −1) it says 1 + q instead of 1.
A step uphill, x < 0, meets |x|³ and not x³, which adds 2q |1 + δ|³.

The last form has no cancellation, near the optimum neither, so it replaces the ratio of two values
of M.  Elementwise and NaN as in ``lipprof.lipschitz.cubic``.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.lipschitz.cubic import Elements, elmo_step, worst_curvature


def step_deviation(
    x: Elements, *, slope: Elements, curvature: Elements, lipschitz: Elements
) -> tuple[Elements, Elements]:
    """ΔΔ = x − x* (Notation 7) and ΔΔ′ = ΔΔ/x* (Notation 8): the actual step against ELMO's.

    Returns:
        The absolute deviation, unit param, and the relative one, without a unit: −1 is no step, 0
        is ELMO's.  Both NaN where x* is not finite, the relative one also where x* = 0.
    """
    best = elmo_step(slope=slope, curvature=curvature, lipschitz=lipschitz)
    finite = torch.where(best.isfinite(), best, torch.nan)
    absolute = x - finite
    return absolute, torch.where(finite > 0, absolute / finite, torch.nan)


def guaranteed_descent(*, slope: Elements, curvature: Elements, lipschitz: Elements) -> Elements:
    """−M(x*) = x*² (2R + λ)/6: what ELMO's step descends in the worst case.

    Returns:
        Not negative.  Unit: loss.  Infinite where x* is.
    """
    model = {"slope": slope, "curvature": curvature, "lipschitz": lipschitz}
    return elmo_step(**model).square() * (2 * worst_curvature(**model) + curvature) / 6


def regret(x: Elements, *, slope: Elements, curvature: Elements, lipschitz: Elements) -> Elements:
    """1 − M(x)/M(x*): how much of ELMO's guaranteed descent the step x gives away (Thm 3.3).

    Returns:
        0: as good as ELMO; 1: no guaranteed descent; above 1: worst-case ascent.  NaN where ELMO
        itself guarantees none (γ = 0 ≤ λ) or takes no finite step.
    """
    model = {"slope": slope, "curvature": curvature, "lipschitz": lipschitz}
    best = elmo_step(**model)
    ratio = x / best
    third = lipschitz * best / (2 * worst_curvature(**model) + curvature)
    uphill = 2 * third * (-ratio).clamp(min=0) ** 3
    given_away = (1 - ratio).square() * (1 + third * ratio) + uphill
    return torch.where(best.isfinite() & (best > 0), given_away, torch.nan)


def concave_share(
    *, slope: Float[Tensor, " k"], curvature: Float[Tensor, " k"], lipschitz: Float[Tensor, " k"]
) -> Float[Tensor, ""]:
    """Share of the guaranteed descent Σ M_i(x*_i) that lies in directions with λ_i ≤ 0.

    Returns:
        0 to 1, 0-d.  NaN where no direction has any descent, and where one of them is unknown or
        without bound: leave those out first to have the share among the known.
    """
    descent = guaranteed_descent(slope=slope, curvature=curvature, lipschitz=lipschitz)
    return descent[curvature <= 0].sum() / descent.sum()
