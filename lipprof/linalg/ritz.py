"""Ritz pairs: what an eigensolver returns, with residuals that were computed, not estimated."""

import enum
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lipprof.linalg.inner import dot, norm
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
    residuals: Float[Tensor, " k"]  # ‖A yᵢ − θᵢ yᵢ‖₂ by an explicit matvec; float64, on the CPU
    converged: Bool[Tensor, " k"]
    top: int
    num_matvecs: int  # all that were paid for

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


def measure_ritz_pairs(
    op: SymmetricOperator,
    vectors: Float[Tensor, "k n"],
    *,
    top: int,
    tol: float,
    scale: float,
    num_matvecs: int,
) -> RitzPairs:
    """Measure Rayleigh quotients and residuals by one explicit matvec per vector.

    A pair is converged when its residual meets ``tolerances``, or when the value itself is zero to
    the precision of the dtype.

    Args:
        op: the operator.
        vectors: orthonormal rows, in falling order of their Ritz values within each end.
        top: how many of them are of the top end.
        tol: relative tolerance per end.
        scale: norm of the operator, as far as known.
        num_matvecs: what was spent so far.

    Returns:
        The pairs, sorted by falling value.
    """
    values, residuals = [], []
    for vector in vectors:
        image = op.matvec(vector)
        value = dot(vector, image)
        values.append(value)
        residuals.append(norm(image - value.to(image.dtype) * vector))
    value = torch.stack(values).cpu()
    residual = torch.stack(residuals).cpu()
    order = value.argsort(descending=True, stable=True)
    value, residual = value[order], residual[order]
    floor = precision_floor(scale, op.dtype)
    zero = value.abs() + residual <= floor
    converged = (residual <= tolerances(value, top=top, tol=tol)) | zero
    return RitzPairs(
        values=value,
        vectors=vectors[order.to(vectors.device)],
        residuals=residual,
        converged=converged,
        top=top,
        num_matvecs=num_matvecs + len(vectors),
    )
