"""Inner products of long vectors: dot, norm, orthogonalisation.

Sums run in the vectors' dtype over blocks and in float64 across them.  A plain float32 dot
product over 1e6 entries is off by 1e-6 to 1e-4 relative, which limits the residual a Lanczos run
can reach; blocked sums are good to 1e-8 at the same speed.  Everything here stays on the device
and never waits for it, and no temporary is larger than a block.  Vectors sharded over processes
would be summed here and nowhere else.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

CPU_BLOCK = 1 << 14  # columns: the rows of a block stay in the cache between its two uses
DEVICE_BLOCK = 1 << 24  # entries: reductions on a GPU are trees already, and a block is a launch


def _blocks(basis: Float[Tensor, "j n"]) -> Iterator[slice]:
    rows, n = basis.shape
    on_cpu = basis.device.type == "cpu"
    size = CPU_BLOCK if on_cpu else max(CPU_BLOCK, DEVICE_BLOCK // max(rows, 1))
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def project(basis: Float[Tensor, "j n"], vector: Float[Tensor, " n"]) -> Float[Tensor, " j"]:
    """Inner products of the rows of ``basis`` with ``vector``.

    Returns:
        (j,) in float64.
    """
    total = torch.zeros(basis.shape[0], dtype=torch.float64, device=basis.device)
    for block in _blocks(basis):
        total += (basis[:, block] @ vector[block]).double()
    return total


def dot(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """x·y in float64, 0-d."""
    return project(x[None], y)[0]


def norm(vector: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """‖x‖₂ in float64, 0-d."""
    # by blocks: on the CPU, torch would widen the whole vector first
    parts = [
        torch.linalg.vector_norm(vector[block], dtype=torch.float64)
        for block in _blocks(vector[None])
    ]
    return torch.linalg.vector_norm(torch.stack(parts))


def orthogonalise_(vector: Float[Tensor, " n"], basis: Float[Tensor, "j n"]) -> Float[Tensor, " j"]:
    """Remove the components along orthonormal rows, in place, by two passes of Gram-Schmidt.

    Two passes are enough: Giraud, Langou, Rozložník (2005).  The second pass projects each block
    right after the first has changed it, so that the basis is read three times and not four.

    Returns:
        The removed coefficients (j,) in float64.
    """
    first = project(basis, vector)
    second = torch.zeros_like(first)
    weights = first.to(vector.dtype)
    for block in _blocks(basis):
        part = vector[block].addmv_(basis[:, block].T, weights, alpha=-1)
        second += basis[:, block] @ part
    weights = second.to(vector.dtype)
    for block in _blocks(basis):
        vector[block].addmv_(basis[:, block].T, weights, alpha=-1)
    return first + second


def combine(basis: Float[Tensor, "j n"], weights: Float[Tensor, "j k"], out: Tensor) -> None:
    """Write weightsᵀ @ basis into the k rows of ``out``, which may be rows of ``basis`` itself.

    Works block by block, so that a restart needs no second basis.
    """
    weights = weights.to(basis)
    for block in _blocks(basis):
        out[:, block] = weights.T @ basis[:, block]


def distance(
    vector: Float[Tensor, " n"], basis: Float[Tensor, "j n"], weights: Float[Tensor, " j"]
) -> Float[Tensor, ""]:
    """‖x − weightsᵀ @ basis‖₂ in float64, 0-d."""
    weights = weights.to(basis)
    total = torch.zeros((), dtype=torch.float64, device=basis.device)
    for block in _blocks(basis):
        part = torch.addmv(vector[block], basis[:, block].T, weights, alpha=-1)
        total += norm(part).square()
    return total.sqrt()
