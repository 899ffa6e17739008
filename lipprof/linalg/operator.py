"""What a symmetric linear operator is: a size, a dtype, a device and a matvec."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class SymmetricOperator(Protocol):
    """A symmetric A (n, n) known only through products A v."""

    @property
    def n(self) -> int:
        """Number of rows."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the vectors."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the vectors."""
        ...

    def matvec(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """A v.  May return ``vector`` itself but never changes it."""
        ...


class DenseOperator:
    """A matrix as an operator."""

    def __init__(self, matrix: Float[Tensor, "n n"]) -> None:
        self.matrix = matrix
        self.n = matrix.shape[0]
        self.dtype = matrix.dtype
        self.device = matrix.device

    def matvec(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """A v."""
        return self.matrix @ vector


def materialise(op: SymmetricOperator) -> Float[Tensor, "n n"]:
    """Build the matrix, one matvec per column, symmetrised.

    Returns:
        (n, n) in float64, on the operator's device.
    """
    columns = []
    for i in range(op.n):
        unit = torch.zeros(op.n, dtype=op.dtype, device=op.device)
        unit[i] = 1.0
        columns.append(op.matvec(unit).double())
    matrix = torch.stack(columns)
    return (matrix + matrix.T) / 2
