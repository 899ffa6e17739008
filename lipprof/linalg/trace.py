"""Trace by XTrace (Epperly, Tropp, Webber 2024).

Half of the products find where A is large: Y = A Ω, Q = orth(Y).  The other half take the trace
there exactly, H = Qᵀ A Q, and Hutchinson's estimate, on what is left, is made once for each column
of Ω with that column left out of Q:

    tᵢ = tr(Pᵢ A) + (n − k + 1) μᵢᵀ A μᵢ / ‖μᵢ‖²,    Pᵢ = Q (I − sᵢsᵢᵀ) Qᵀ,   μᵢ = (I − Pᵢ) ωᵢ

with sᵢ ∝ R⁻ᵀ eᵢ.  Since A is symmetric, all of it follows from the k × k matrices R, W = QᵀΩ and H.

It beats Hutchinson where the spectrum decays or has outliers, and loses a little where it is flat.
Relative error (root mean square, n = 1000, 60 products): eigenvalues 1…3 evenly 2.3e-3, Hutchinson
1.9e-3; k^-1/2 5.6e-3, 6.4e-3; k^-1 8e-3, 3.2e-2; k^-2 1e-3, 1e-1; six outliers over a bulk, as a
loss surface has, 4e-3, 1e-1.  The tᵢ share most of Q, so the standard error from their spread is
optimistic: the true error's spread was 1.0 to 1.4 times it there, 1.1 to 1.6 with 20 products.

Memory: k vectors (half the matvecs) and three; Ω is drawn twice rather than kept.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.errors import ConfigError, NonfiniteError
from lipprof.linalg.inner import norm, orthogonalise_, project
from lipprof.linalg.operator import SymmetricOperator, materialise


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEstimate:
    """A trace with its standard error, 0 where the trace is exact."""

    trace: float
    stderr: float
    num_matvecs: int


def xtrace(op: SymmetricOperator, *, matvecs: int, seed: int = 0) -> TraceEstimate:
    """Estimate the trace of A.

    Args:
        op: a symmetric operator.
        matvecs: products to spend, at least 4; an odd one is not spent.  From n on, the trace is
            exact.
        seed: of the test vectors.

    Returns:
        The estimate.

    Raises:
        ConfigError: fewer than 4 matvecs for a matrix larger than that.
        NonfiniteError: a matvec returned NaN or infinity.
    """
    if matvecs >= op.n:
        exact = float(materialise(op).trace())
        _check_finite(exact)
        return TraceEstimate(trace=exact, stderr=0.0, num_matvecs=op.n)
    if matvecs < 4:
        raise ConfigError(
            f"Got matvecs={matvecs}: XTrace needs 4 or more for a standard error (or n={op.n})."
        )
    k = matvecs // 2
    basis, triangle = _range_of(op, k, seed)
    generator = _generator(op, seed)
    overlaps, lengths = [], []
    for _ in range(k):
        vector = _test_vector(op, generator)
        overlaps.append(project(basis, vector))
        lengths.append(norm(vector))
    inside = torch.stack([project(basis, op.matvec(row)) for row in basis]).cpu()
    samples = _leave_one_out(
        triangle,
        torch.stack(overlaps, 1).cpu(),
        (inside + inside.T) / 2,
        lengths=torch.stack(lengths).cpu(),
        n=op.n,
    )
    mean = float(samples.mean())
    _check_finite(mean)
    return TraceEstimate(trace=mean, stderr=float(samples.std()) / k**0.5, num_matvecs=2 * k)


def _check_finite(trace: float) -> None:
    if not torch.isfinite(torch.tensor(trace)):
        raise NonfiniteError("A matrix-vector product returned NaN or infinity in the trace.")


def _generator(op: SymmetricOperator, seed: int) -> torch.Generator:
    return torch.Generator(op.device).manual_seed(seed)


def _test_vector(op: SymmetricOperator, generator: torch.Generator) -> Float[Tensor, " n"]:
    return torch.randn(op.n, generator=generator, dtype=op.dtype, device=op.device)


def _range_of(
    op: SymmetricOperator, k: int, seed: int
) -> tuple[Float[Tensor, "k n"], Float[Tensor, "k k"]]:
    """Factor A Ω = Q R, one matvec per column.

    Where A Ω is rank-deficient, Q goes on with random rows and R has rounding on its diagonal.

    Returns:
        Qᵀ on the operator's device, and R in float64 on the CPU.
    """
    generator, filler = _generator(op, seed), _generator(op, seed + 1)
    rows = torch.empty(k, op.n, dtype=op.dtype, device=op.device)
    triangle = torch.zeros(k, k, dtype=torch.float64)
    tiny = 100 * torch.finfo(op.dtype).eps
    for i in range(k):
        rows[i] = op.matvec(_test_vector(op, generator))
        before = float(norm(rows[i]))
        triangle[:i, i] = orthogonalise_(rows[i], rows[:i]).cpu()
        size = float(norm(rows[i]))
        if size <= tiny * before:
            rows[i] = _test_vector(op, filler)
            orthogonalise_(rows[i], rows[:i])
            rows[i] /= float(norm(rows[i]))
            size = max(tiny * before, torch.finfo(torch.float64).tiny)
        else:
            rows[i] /= size
        triangle[i, i] = size
    return rows, triangle


def _leave_one_out(
    triangle: Float[Tensor, "k k"],
    overlap: Float[Tensor, "k k"],
    inside: Float[Tensor, "k k"],
    *,
    lengths: Float[Tensor, " k"],
    n: int,
) -> Float[Tensor, " k"]:
    """The estimates tᵢ from R, W, H and ‖ωᵢ‖; columns belong to i."""
    k = len(triangle)
    identity = torch.eye(k, dtype=torch.float64)
    left_out = torch.linalg.solve_triangular(triangle.T, identity, upper=False)
    left_out = left_out / left_out.abs().amax(0)
    left_out = left_out / left_out.norm(dim=0)
    kept = overlap - left_out * (left_out * overlap).sum(0)  # Qᵀ Pᵢ ωᵢ
    captured = inside.trace() - (left_out * (inside @ left_out)).sum(0)
    rest = ((overlap - 2 * kept) * triangle).sum(0) + (kept * (inside @ kept)).sum(0)
    rest_length = lengths.square() - kept.square().sum(0)
    return captured + (n - k + 1) * rest / rest_length
