"""The Hessian of a loss as a matrix-free operator over retained gradient graphs.

The gradient is computed once with its graph; every product H v is then one more backward pass
through that graph: about 2.2 gradients, against 3.2 when the forward is repeated for each product.
The graph holds the activations about twice, until the operator is dropped.

Losses over several microbatches add up with weights, one retained graph each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.curvature.loss.gradients import differentiate
from lipprof.curvature.loss.losses import ProbeLoss
from lipprof.curvature.operators import GraphOperator
from lipprof.curvature.parameters import ParameterView
from lipprof.curvature.second_order import check_second_derivative, differentiate_again
from lipprof.linalg import rademacher


@dataclass(frozen=True, slots=True)
class GradientGraph:
    """A loss at the present parameters and its gradient, differentiable once more."""

    loss: float
    gradients: Sequence[Tensor]  # one per parameter, in the view's order, with graph
    weight: float = 1.0  # of this microbatch in the total


def gradient_graph(loss: Any, view: ParameterView, *, weight: float = 1.0) -> GradientGraph:
    """Differentiate a loss and keep the graph.

    Args:
        loss: a scalar with its graph; ``.grad`` fields stay as they are.
        view: the parameters; those that the loss does not use get zeros.
        weight: of this microbatch.

    Returns:
        The graph.

    Raises:
        NotDifferentiableError: the loss is no scalar, does not depend on any parameter, or
            passes a function without second derivative.
        NonfiniteError: the loss or its gradient is NaN or infinite.
    """
    value, gradients = differentiate(loss, view, create_graph=True)
    check_second_derivative([loss], gradients, view)
    return GradientGraph(value, gradients, weight)


def retained_hessian(loss: ProbeLoss, view: ParameterView) -> "HessianOperator":
    """Evaluate a closure and keep its gradient graphs.

    To be called under ``undisturbed`` and ``twice_differentiable``.

    Args:
        loss: the closure.
        view: the parameters.

    Returns:
        Its Hessian at the present parameters.

    Raises:
        NotDifferentiableError: see ``gradient_graph``.
        NonfiniteError: the loss is NaN or infinite.
    """
    return HessianOperator(view, [gradient_graph(x, view, weight=w) for w, x in loss.terms()])


class HessianOperator(GraphOperator[GradientGraph]):
    """H = Σ_b w_b ∇²loss_b at the present parameters."""

    def gradient(self) -> Float[Tensor, " n"]:
        """Σ_b w_b ∇loss_b, detached."""
        total = torch.zeros(self.n, dtype=self.dtype, device=self.device)
        for graph in self.graphs:
            total.add_(self.view.flatten(graph.gradients), alpha=graph.weight)
        return total

    def _product(self, graph: GradientGraph, parts: Sequence[Tensor]) -> Sequence[Tensor] | None:
        curved = [i for i, gradient in enumerate(graph.gradients) if gradient.requires_grad]
        if not curved:
            return None  # the loss is linear in the parameters
        gradients = [graph.gradients[i] for i in curved]
        vectors = [parts[i] for i in curved]
        return differentiate_again(gradients, self.view.parameters, vectors, self.view)


def hutchinson_sample(
    loss: Tensor, parameters: Sequence[Tensor], generator: torch.Generator | None = None
) -> list[Tensor]:
    """One Hutchinson sample z ⊙ Hz of the Hessian's diagonal, for Sophia-H.

    Args:
        loss: a scalar with its graph, which stays usable for ``loss.backward()``.
        parameters: those of the diagonal.
        generator: of the Rademacher signs z; default: torch's own.

    Returns:
        One tensor per parameter; zeros where the loss does not depend on it.
    """
    view = ParameterView((str(i), parameter) for i, parameter in enumerate(parameters))
    operator = HessianOperator(view, [gradient_graph(loss, view)])
    probe = rademacher(operator, generator)
    return view.split(probe * operator.matvec(probe))
