"""Ritz pairs: what an eigensolver returns, with residuals that were computed, not estimated."""

import enum
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lipprof.linalg.inner import distance, dot
from lipprof.linalg.operator import SymmetricOperator

PRECISION_FACTOR = 50
"""Residuals under 50 eps ‖A‖ are beyond the dtype: 6e-6 ‖A‖ in float32 (measured 5e-6)."""


class SpectrumStatus(enum.Enum):
    """How a run of the eigensolver ended; the value says what to do about it."""

    CONVERGED = "all residuals meet the tolerance"
    UNCONVERGED = (
        "some residuals are over tolerance: raise max_matvecs, ask for fewer pairs, or use float64"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RitzPairs:
    """k Ritz pairs (θᵢ, yᵢ) in falling order of θ: ``top`` largest, then the smallest."""

    values: Float[Tensor, " k"]  # float64, on the CPU
    vectors: Float[Tensor, "k n"]  # orthonormal rows, on the operator's device
    residuals: Float[Tensor, " k"]  # ‖A yᵢ − θᵢ yᵢ‖₂, see ``residual_error``; float64, on the CPU
    converged: Bool[Tensor, " k"]
    top: int
    num_matvecs: int  # all that were paid for
    residual_error: float = 0.0
    """0: every residual had an explicit matvec of its own.  Otherwise they follow from the Krylov
    relation, whose error, root of the sum over the pairs of its squares, was measured by one
    explicit matvec: this number, and it is already in each residual, which is never below it."""

    @property
    def status(self) -> SpectrumStatus:
        """Whether every pair converged."""
        return SpectrumStatus.CONVERGED if self.converged.all() else SpectrumStatus.UNCONVERGED


def tolerances(values: Float[Tensor, " k"], *, top: int, tol: float) -> Float[Tensor, " k"]:
    """Residual that each pair must meet: ``tol`` times the extreme eigenvalue of its own end.

    A tolerance relative to the largest eigenvalue alone would be too loose at the other end.  A
    pair larger than the extreme one of its end (a bottom end near zero) is measured by itself.

    Returns:
        (k,), unit of the eigenvalues.
    """
    extreme = torch.cat([values[:1].expand(top), values[-1:].expand(len(values) - top)])
    return tol * torch.maximum(extreme.abs(), values.abs())


def precision_floor(scale: float, dtype: torch.dtype) -> float:
    """Smallest residual that the dtype can resolve for an operator of norm ``scale``."""
    return PRECISION_FACTOR * torch.finfo(dtype).eps * scale


def ritz_pairs(
    values: Float[Tensor, " k"],
    vectors: Float[Tensor, "k n"],
    residuals: Float[Tensor, " k"],
    *,
    top: int,
    tol: float,
    scale: float,
    num_matvecs: int,
    residual_error: float = 0.0,
) -> RitzPairs:
    """Judge measured pairs.

    A pair is converged when its residual meets ``tolerances``, or when the value itself is zero to
    the precision of the dtype.

    Args:
        values: Rayleigh quotients, on the CPU.
        vectors: orthonormal rows.
        residuals: norms, on the CPU.
        top: how many are of the top end; they come first.
        tol: relative tolerance per end.
        scale: norm of the operator, as far as known.
        num_matvecs: what was spent.
        residual_error: see ``RitzPairs``.

    Returns:
        The pairs, sorted by falling value.
    """
    order = values.argsort(descending=True, stable=True)
    if not torch.equal(order, torch.arange(len(order))):
        values, residuals = values[order], residuals[order]
        vectors = vectors[order.to(vectors.device)]
    zero = values.abs() + residuals <= precision_floor(scale, vectors.dtype)
    return RitzPairs(
        values=values,
        vectors=vectors,
        residuals=residuals,
        converged=(residuals <= tolerances(values, top=top, tol=tol)) | zero,
        top=top,
        num_matvecs=num_matvecs,
        residual_error=residual_error,
    )


def measure_explicitly(
    op: SymmetricOperator, vectors: Float[Tensor, "k n"]
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """Rayleigh quotients and residual norms by one matvec per vector.

    Returns:
        Two (k,) in float64, on the CPU.
    """
    values, residuals = [], []
    for vector in vectors:
        image = op.matvec(vector)
        value = dot(vector, image)
        values.append(value)
        residuals.append(distance(image, vector[None], value[None]))
    return torch.stack(values).cpu(), torch.stack(residuals).cpu()
