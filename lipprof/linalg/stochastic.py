"""Hutchinson's estimates of the diagonal and the trace, with standard errors.

With Rademacher probes z (Bekas, Kokiopoulou, Saad 2007; Hutchinson 1989):

    diag A = E[z ⊙ Az],     tr A = E[zᵀ A z]

One matvec per probe.  The same seed gives the same probes, so that the difference of two estimates
at different parameters holds the change of A and not the change of the probes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.errors import NonfiniteError
from lipprof.linalg.inner import dot
from lipprof.linalg.operator import SymmetricOperator


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagonalEstimate:
    """Estimates from ``num_matvecs`` probes; the standard error is NaN for a single one."""

    diagonal: Float[Tensor, " n"]  # in the operator's dtype, on its device
    trace: float
    trace_stderr: float
    num_matvecs: int


def rademacher(
    op: SymmetricOperator, generator: torch.Generator | None = None
) -> Float[Tensor, " n"]:
    """Draw a vector of independent signs; without a generator, from torch's own."""
    bits = torch.randint(0, 2, (op.n,), generator=generator, device=op.device, dtype=torch.int8)
    return (2 * bits - 1).to(op.dtype)


def hutchinson(op: SymmetricOperator, *, probes: int, seed: int = 0) -> DiagonalEstimate:
    """Estimate diagonal and trace.

    Args:
        op: a symmetric operator.
        probes: number of matvecs, at least 1.
        seed: of the probes.

    Returns:
        The estimates.

    Raises:
        NonfiniteError: a matvec returned NaN or infinity.
    """
    generator = torch.Generator(op.device).manual_seed(seed)
    diagonal = torch.zeros(op.n, dtype=op.dtype, device=op.device)
    samples = []
    for _ in range(probes):
        probe = rademacher(op, generator)
        image = op.matvec(probe)
        diagonal.addcmul_(probe, image, value=1 / probes)
        samples.append(dot(probe, image))
    trace = torch.stack(samples)
    if not bool(trace.isfinite().all()):
        raise NonfiniteError(
            "A matrix-vector product returned NaN or infinity in the trace estimate."
        )
    stderr = trace.std() / probes**0.5 if probes > 1 else torch.tensor(torch.nan)
    return DiagonalEstimate(
        diagonal=diagonal,
        trace=float(trace.mean()),
        trace_stderr=float(stderr),
        num_matvecs=probes,
    )
