"""Eigenspaces of the Hessian as they are lent to an optimizer: eigenpairs, and how fast they move.

Without computation.  The vectors are the lender's own tensor wherever that is possible, not a copy.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lipprof.errors import ShapeError


@dataclass(frozen=True, slots=True, eq=False)
class Eigenspaces:
    """k eigenpairs of the Hessian over some parameters, n numbers in all.

    Attributes:
        parameters: in the order of the flat vector.
        vectors: (k, n), orthonormal rows, all of converged pairs.
        values: (k,) eigenvalues λ, loss/param².
        lipschitz: (k,) Hessian-Lipschitz parameters L, loss/param³; NaN where unknown.

    Raises:
        ShapeError: the shapes do not fit together.
    """

    parameters: tuple[Tensor, ...]
    vectors: Float[Tensor, "k n"]
    values: Float[Tensor, " k"]
    lipschitz: Float[Tensor, " k"]

    def __post_init__(self) -> None:
        n = sum(parameter.numel() for parameter in self.parameters)
        k = len(self.values)
        if self.vectors.shape != (k, n) or self.lipschitz.shape != self.values.shape:
            raise ShapeError(
                f"Got vectors of shape {tuple(self.vectors.shape)}, values of "
                f"{tuple(self.values.shape)} and lipschitz of {tuple(self.lipschitz.shape)} for "
                f"n={n} parameters. Expected (k, n), (k,) and (k,)."
            )
