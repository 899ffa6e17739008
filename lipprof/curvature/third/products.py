"""Third derivatives: ∇_θ(vᵀ H(θ) w) at fixed v and w, over a retained gradient graph.

With v = w = vᵢ, an eigenvector, it is ∇_θ λᵢ (Hellmann-Feynman), and at the same time the second
derivative of the gradient along v, T[v, v, ·] = d²/dt² ∇f(θ + t v) at t = 0.

H v is computed with its graph, by one more backward through the gradient's graph, and
differentiated along w.  Measured on a CPU in products H v over the same graph: 2.4 to 2.5 per
vector on a small CNN, 3.6 to 3.7 on a 4-layer GPT.  Evaluating the loss along θ + t v by nested
forward mode and differentiating that backward costs 2.4 and 4.2, the gradient by nested forward
mode 3.4 and 5.4; both lack formulas for some operators.  The graph (0.5 products) is shared by all
vectors and freed before the next microbatch's is built.

The graph must come from kernels whose third derivative is right (``thrice_differentiable``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.curvature.guards import undisturbed
from lipprof.curvature.hessian.retained import GradientGraph, HessianOperator, gradient_graph
from lipprof.curvature.kernels import thrice_differentiable
from lipprof.curvature.loss.graph_walk import graph_nodes
from lipprof.curvature.loss.losses import ProbeLoss
from lipprof.curvature.parameters import ParameterView
from lipprof.curvature.second_order import differentiate_again
from lipprof.errors import NoSecondDerivativeError, ThirdDerivativeError


@dataclass(frozen=True, slots=True)
class ThirdDerivatives:
    """Of k pairs of vectors."""

    gradients: Float[Tensor, "k n"]  # ∇(vᵀ H w); loss/param³ for unit vectors
    products: Float[Tensor, "k n"]  # H v, which falls off on the way; loss/param²


def third_derivatives(
    source: ProbeLoss | HessianOperator,
    view: ParameterView,
    vectors: Float[Tensor, "k n"],
    others: Float[Tensor, "k n"] | None = None,
) -> ThirdDerivatives:
    """Differentiate vᵀ H w by θ for several pairs of vectors.

    Args:
        source: a closure, evaluated at the present parameters; or retained graphs, which must have
            been built under ``thrice_differentiable``.
        view: the parameters.
        vectors: v, one a row.
        others: w; default v.

    Returns:
        The gradients.  Memory: 2kn numbers, and about 4 times what products over the retained graph
        take (a 4-layer GPT: 580 MB against 150 MB, beyond a training step's).

    Raises:
        ThirdDerivativeError: an operator in the graph has no third derivative.
        NotDifferentiableError: see ``gradient_graph``.
        NonfiniteError: the loss or its gradient is NaN or infinite.
    """
    others = vectors if others is None else others
    total = ThirdDerivatives(torch.zeros_like(vectors), torch.zeros_like(vectors))
    if isinstance(source, HessianOperator):
        for graph in source.graphs:
            _accumulate(total, graph, view, vectors, others)
        return total
    with undisturbed(source.model), thrice_differentiable(source.model):
        for weight, loss in source.terms():
            graph = gradient_graph(loss, view, weight=weight)
            _accumulate(total, graph, view, vectors, others)
            del graph, loss  # before the next one is built
    return total


def _accumulate(
    total: ThirdDerivatives,
    graph: GradientGraph,
    view: ParameterView,
    vectors: Float[Tensor, "k n"],
    others: Float[Tensor, "k n"],
) -> None:
    for i, (v, w) in enumerate(zip(vectors, others, strict=True)):
        product = _derivative(graph.gradients, view, view.split(v), create_graph=True)
        total.products[i].add_(view.flatten(product), alpha=graph.weight)
        if i == 0:
            _refuse_cut(product)
        third = _derivative(product, view, view.split(w), create_graph=False)
        total.gradients[i].add_(view.flatten(third), alpha=graph.weight)
        del product, third


def _refuse_cut(product: Sequence[Tensor]) -> None:
    """Torch would leave out what lies behind a function that is marked, without an error."""
    if any(node.name() == "torch::autograd::Error" for node in graph_nodes(product)):
        raise ThirdDerivativeError(
            "There is no third derivative: the backward of a custom autograd function in the model "
            "uses a function that is marked once_differentiable."
        )


def _derivative(
    outputs: Sequence[Tensor], view: ParameterView, vectors: Sequence[Tensor], *, create_graph: bool
) -> Sequence[Tensor]:
    """∇_θ Σᵢ outputsᵢ · vectorsᵢ; zero where the outputs have no graph."""
    bent = [i for i, output in enumerate(outputs) if output.requires_grad]
    if not bent:
        return [torch.zeros_like(parameter) for parameter in view.parameters]
    try:
        return differentiate_again(
            [outputs[i] for i in bent],
            view.parameters,
            [vectors[i] for i in bent],
            view,
            create_graph=create_graph,
        )
    except NoSecondDerivativeError as error:
        if create_graph:
            raise
        reason = next(iter(str(error.__cause__).splitlines()), "")
        raise ThirdDerivativeError(
            f"An operator in the model has no third derivative: {reason}. Use a plain "
            "implementation of it where lipprof.is_probing()."
        ) from error
