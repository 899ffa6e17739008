"""Cubic models of the loss along one eigenspace: the adversary's loss M, ELMO's step, eq. 8.

Every function is elementwise.  x = Δθ·v is the displacement along an eigenvector v (positive in
the direction of descent; param), γ = |g·v| the slope (loss/param), λ the eigenvalue (loss/param²),
L the Hessian-Lipschitz parameter (loss/param³).  NaN, γ < 0 or L < 0 in, NaN out.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Elements = Float[Tensor, "*k"]


def pessimistic_model(x: Elements, *, slope: Elements, curvature: Elements, lipschitz: Elements):
    """M(x) = −γx + λx²/2 + L|x|³/6: the highest the loss can rise to (eq. 3).

    Returns:
        M, relative to the loss at x = 0.  Unit: loss.
    """
    quadratic = -_valid(slope) * x + curvature * x.square() / 2
    return quadratic + _valid(lipschitz) * x.abs() ** 3 / 6


def optimistic_model(x: Elements, *, slope: Elements, curvature: Elements, lipschitz: Elements):
    """m(x) = −γx + λx²/2 − L|x|³/6: the lowest the loss can fall to (eq. 4).

    Returns:
        m, relative to the loss at x = 0.  Unit: loss.
    """
    quadratic = -_valid(slope) * x + curvature * x.square() / 2
    return quadratic - _valid(lipschitz) * x.abs() ** 3 / 6


def elmo_step(*, slope: Elements, curvature: Elements, lipschitz: Elements) -> Elements:
    """x* = (√(λ² + 2Lγ) − λ)/L, the argmin of M over x ≥ 0 (eq. 7).

    For λ ≥ 0 the equal form 2γ/(λ + √(λ² + 2Lγ)) is used, which has no cancellation and becomes
    Newton's γ/λ as L → 0 (eq. 13).

    Returns:
        x* ≥ 0.  Unit: param.  Infinite where L = 0 and M has no minimum (λ < 0, or λ = 0 < γ).
    """
    root = worst_curvature(slope=slope, curvature=curvature, lipschitz=lipschitz)
    convex = 2 * slope / (curvature + root)
    concave = (root - curvature) / lipschitz
    step = torch.where(curvature >= 0, convex, concave)
    flat = (slope == 0) & (curvature == 0) & (lipschitz >= 0)
    return torch.where(flat, torch.zeros_like(step), step)


def worst_curvature(*, slope: Elements, curvature: Elements, lipschitz: Elements) -> Elements:
    """R = √(λ² + 2Lγ) = λ + Lx*: the second derivative of M at its minimiser x*.

    Returns:
        R ≥ |λ|.  Unit: loss/param².
    """
    # λ² and Lγ may be out of range where R is not
    return torch.hypot(curvature, (2 * _valid(lipschitz)).sqrt() * _valid(slope).sqrt())


def elmo_preconditioner(*, slope: Elements, curvature: Elements, lipschitz: Elements) -> Elements:
    """φ = x*/γ = 2/(λ + √(λ² + 2Lγ)), the eigenvalue of ELMO's preconditioner Φ (Lemma 3.2).

    Φ = [(H + √(H² + 2 V diag(Lᵢγᵢ) Vᵀ))/2]⁻¹ has H's eigenvectors, and −Φg = Σ x*ᵢvᵢ with the vᵢ
    oriented so that g·vᵢ ≤ 0.

    Returns:
        φ ≥ 0.  Unit: param²/loss.  Infinite where Lγ = 0 and λ ≤ 0.
    """
    root = worst_curvature(slope=slope, curvature=curvature, lipschitz=lipschitz)
    bend = 2 * lipschitz * slope
    # for λ < 0 the sum of the first form would cancel
    return torch.where(curvature >= 0, 2 / (curvature + root), 2 * (root - curvature) / bend)


def newton_threshold(*, slope: Elements, curvature: Elements) -> Elements:
    """3λ²/γ: for L at or above it, Newton's step γ/λ ascends in the worst case (eq. 8).

    Returns:
        The threshold for L, loss/param³; infinite where γ = 0 < λ.  Zero where λ ≤ 0: there
        Newton's step is not one of descent, whatever L.
    """
    slope = _valid(slope)
    no_descent = (curvature <= 0) & ~slope.isnan()
    return torch.where(no_descent, 0.0, 3 * curvature * (curvature / slope))


def newton_threshold_range(
    *, slope: Elements, curvature: Elements, stderr: Elements
) -> tuple[Elements, Elements]:
    """Range of 3λ²/γ for a λ that is known up to its standard error.

    Returns:
        The thresholds at λ − stderr and at λ + stderr; a NaN stderr counts as 0.
    """
    stderr = stderr.nan_to_num(0.0)
    return (
        newton_threshold(slope=slope, curvature=curvature - stderr),
        newton_threshold(slope=slope, curvature=curvature + stderr),
    )


def _valid(nonnegative: Elements) -> Elements:
    return torch.where(nonnegative >= 0, nonnegative, torch.nan)
