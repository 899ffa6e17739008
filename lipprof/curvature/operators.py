"""What operators over the parameters of a model have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
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


@runtime_checkable
class LossGraph(Protocol):
    """What is kept of one microbatch."""

    @property
    def loss(self) -> float:
        """Its loss."""
        ...

    @property
    def weight(self) -> float:
        """Its share in the total."""
        ...


Graph = TypeVar("Graph", bound=LossGraph)


class GraphOperator(ABC, Generic[Graph]):
    """Σ_b w_b A_b over the retained graphs of microbatches; a ``ParameterOperator``.

    Valid until the parameters change; the graphs are freed with the object.
    """

    def __init__(self, view: ParameterView, graphs: Sequence[Graph]) -> None:
        self.view = view
        self.graphs = tuple(graphs)
        self.n, self.dtype, self.device = view.n, view.dtype, view.device

    @property
    def loss(self) -> float:
        """Σ_b w_b loss_b."""
        return sum(graph.weight * graph.loss for graph in self.graphs)

    def matvec(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Σ_b w_b A_b v.

        Args:
            vector: v.

        Returns:
            The product.

        Raises:
            NoSecondDerivativeError: an operator in a graph has none.
        """  # noqa: DOC502 - raised by the products
        parts = self.view.split(vector)
        total = torch.zeros(self.n, dtype=self.dtype, device=self.device)
        for graph in self.graphs:
            product = self._product(graph, parts)
            if product is not None:
                total.add_(self.view.flatten(product), alpha=graph.weight)
        return total

    @abstractmethod
    def _product(self, graph: Graph, parts: Sequence[Tensor]) -> Sequence[Tensor] | None:
        """A_b v, one tensor per parameter; None where it is zero."""
