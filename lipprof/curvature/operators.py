"""What operators over the parameters of a model have in common."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from lipprof.curvature.parameters import ParameterView
from lipprof.linalg import SymmetricOperator


@runtime_checkable
class ParameterOperator(SymmetricOperator, Protocol):
    """A symmetric operator over the flat vector of some parameters."""

    @property
    def view(self) -> ParameterView:
        """The parameters, in the order of the vector."""
        ...


class LossHessian(ParameterOperator, Protocol):
    """The Hessian of a loss, with the loss itself and its gradient."""

    @property
    def loss(self) -> float:
        """The loss."""
        ...

    def gradient(self) -> Float[Tensor, " n"]:
        """Its gradient."""
        ...
