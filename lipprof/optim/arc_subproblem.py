"""The step of adaptive cubic regularisation: the minimum of a cubic model over a Krylov space.

    m(s) = g·s + ½ sᵀHs + σ/3 ‖s‖³

s is the global minimiser of m exactly when (H + νI) s = −g with ν = σ‖s‖ and H + νI ⪰ 0 (Cartis,
Gould & Toint 2011, theorem 3.1).  On the eigenvectors of H this is one equation for one number,
‖(Λ + ν)⁻¹ c‖ = ν/σ with c the components of g.

Departs from the paper's section 6.2 in three ways:
1. Lanczos with full reorthogonalisation; the projected H, of at most ``max_matvecs`` rows, is
   diagonalised and the equation solved to rounding.
2. The unknown is τ = ν − max(0, −λ₁), which keeps its digits where g is next to orthogonal to the
   lowest eigenvector.  It is bracketed in closed form by ELMO's step: with L = 2σ and curvature
   |λ₁|, from the slope |c₁| below and ‖c‖ above; and sought as log τ, where the equation is smooth.
3. The basis does not depend on σ: a refused step is followed by another at next to no cost.

A Krylov space of g never sees a direction of negative curvature exactly orthogonal to g: the
minimum is global within the space, as in the paper.

Cost: a matvec a row, and the basis, up to ``max_matvecs`` + 1 vectors.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

from lipprof.errors import NonfiniteError
from lipprof.linalg import SymmetricOperator
from lipprof.linalg.inner import norm
from lipprof.linalg.krylov import KrylovBasis
from lipprof.linalg.lanczos import NONFINITE
from lipprof.lipschitz import elmo_step

SLACK = 1e-12  # relative, of lengths: the rounding of closed forms that meet at a root


@dataclass(frozen=True, slots=True, kw_only=True)
class CubicStep:
    """A minimiser of the cubic model over a Krylov space."""

    step: Float[Tensor, " n"]  # s, param
    descent: float  # −m(s) ≥ 0, loss
    regularisation: float  # σ/3 ‖s‖³, loss
    residual: float  # ‖∇m(s)‖ over the whole space, loss/param
    converged: bool  # residual ≤ tol ‖g‖, or the Krylov space is invariant


class CubicSubproblem:
    """Minimises m for one g and H, and for as many σ as needed.

    Args:
        op: H.
        gradient: g, with a norm whose square does not underflow.
        tol: of ‖∇m(s)‖ relative to ‖g‖.
        max_matvecs: largest dimension of the Krylov space.
    """

    def __init__(
        self,
        op: SymmetricOperator,
        gradient: Float[Tensor, " n"],
        *,
        tol: float,
        max_matvecs: int,
    ) -> None:
        self._basis = KrylovBasis(op, min(max_matvecs, op.n), device=op.device, seed=0)
        self._basis.insert_direction(gradient)
        self._slope = float(norm(gradient))
        self._limit = tol * self._slope
        self._closed = False

    @property
    def num_matvecs(self) -> int:
        """Products so far, for all σ together."""
        return self._basis.j

    def minimise(self, sigma: float) -> CubicStep:
        """Extend the basis until the model's gradient is small enough.

        Args:
            sigma: σ > 0, loss/param³.

        Returns:
            The minimiser, its descent, and how exact it is.

        Raises:
            NonfiniteError: a product is NaN or infinite.
        """
        basis = self._basis
        if basis.j == 0:
            self._extend()
        while True:
            relation = basis.relation()
            projected = (relation[:-1] + relation[:-1].T) / 2
            values, vectors = torch.linalg.eigh(projected)
            components = self._slope * vectors[0]
            on_vectors = cubic_minimiser(values, components, sigma)
            weights = vectors @ on_vectors
            residual = abs(float(relation[-1] @ weights))
            converged = self._closed or residual <= self._limit
            if converged or basis.j == basis.size:
                break
            self._extend()
        regularisation = sigma * float(on_vectors.norm()) ** 3 / 3
        return CubicStep(
            step=basis.combine(weights[:, None])[0],
            descent=(regularisation - float(components @ on_vectors)) / 2,  # as sᵀ∇m(s) = 0
            regularisation=regularisation,
            residual=residual,
            converged=converged,
        )

    def _extend(self) -> None:
        basis = self._basis
        basis.step()
        relation = basis.relation()
        if not relation.isfinite().all():
            raise NonfiniteError(NONFINITE)
        invariant = basis.closed_at(relation, since=basis.j - 1) is not None
        self._closed = invariant or basis.j == basis.op.n


def cubic_minimiser(
    values: Float[Tensor, " j"], components: Float[Tensor, " j"], sigma: float
) -> Float[Tensor, " j"]:
    """The global minimiser of Σ (cᵢ sᵢ + ½ λᵢ sᵢ²) + σ/3 ‖s‖³.

    In the hard case, c without a part along the lowest eigenvector and λ₁ too negative for the
    rest to reach the length −λ₁/σ, two are equally low; the one with s₁ ≥ 0 is given.

    Args:
        values: λ, rising, float64.
        components: c; as for ``CubicSubproblem``, or zero.
        sigma: σ > 0.

    Returns:
        s, components on the eigenvectors.
    """
    shift = max(0.0, -float(values[0]))
    gaps = values + shift
    length = shift / sigma
    least = _quotient(components, gaps)
    if float(least.norm()) <= length * (1 + SLACK):
        least[0] += math.sqrt(max(0.0, length**2 - float(least.norm()) ** 2))
        return least

    def excess(log_tau: float) -> float:
        tau = math.exp(log_tau)
        step = _quotient(components, gaps + tau)
        return math.log(float(step.norm()) * sigma / (shift + tau))

    low, high = _bracket(values, components, sigma)
    root = float(brentq(excess, low, high, xtol=1e-15))  # pyright: ignore[reportArgumentType]
    return _quotient(components, gaps + math.exp(root))


def _bracket(
    values: Float[Tensor, " j"], components: Float[Tensor, " j"], sigma: float
) -> tuple[float, float]:
    """Bounds of log τ."""
    lowest = components[values == values[0]].abs()
    slope = torch.stack([lowest.max(), components.norm()])
    curvature = values[0].abs().expand(2)
    tau = sigma * elmo_step(
        slope=slope, curvature=curvature, lipschitz=torch.full_like(slope, 2 * sigma)
    )
    low, high = tau.clamp(min=torch.finfo(torch.float64).tiny).log().tolist()
    return low - SLACK, high + SLACK


def _quotient(components: Float[Tensor, " j"], divisor: Float[Tensor, " j"]) -> Tensor:
    """−c/d, zero where c is, whatever d."""
    return torch.where(components == 0, 0.0, -components / divisor)
