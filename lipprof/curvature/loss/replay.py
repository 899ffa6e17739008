"""The Hessian of a training step as it happens: the forward is replayed, the loss head is live.

A training step computes z = model(x), perhaps by kernels that have no second derivative, then
loss = head(z) in the user's own code.  When the loop asks for the backward of its loss:

1. g_z = ∂loss/∂z is computed with its graph.  This differentiates the head alone.
2. The forward runs again on the same arguments, buffers and random numbers, by twice
   differentiable kernels: z'.
3. ``_HeadFunction`` maps z' to the values of g_z; its derivative along u is the head's own
   Hessian-vector product ∂(g_z·u)/∂z, so g = (∂z'/∂θ)ᵀ _HeadFunction(z') is the gradient *and*
   differentiates to the complete Hessian, Gauss-Newton and network terms both.  With
   ``create_graph`` that derivative is such a function again, of z' and u: it can be differentiated
   as often as the head.

The user's graph, kernels and gradients stay as they are.  A model that returns its loss is the
case z = loss; several forwards are one z of all their outputs.  What the outputs do not explain (a
penalty on the parameters in the loop, a loss of both the logits and the model's own loss) shows in
the gradient, which the caller must compare.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils import _pytree as pytree

from lipprof.curvature.guards import RandomState, undisturbed
from lipprof.curvature.hessian.retained import GradientGraph
from lipprof.curvature.kernels import thrice_differentiable, twice_differentiable
from lipprof.curvature.loss.graph_walk import place_of, walk
from lipprof.curvature.parameters import ParameterView
from lipprof.curvature.second_order import check_second_derivative, is_missing_second_derivative
from lipprof.errors import NonfiniteError, NoSecondDerivativeError, ReplayError


@dataclass(frozen=True, slots=True)
class CapturedForward:
    """What one forward of the root module was given and gave."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    random_state: RandomState  # before the forward
    buffers: dict[int, Tensor]  # likewise, by id
    autocast: tuple[bool, torch.dtype]
    edges: dict[int, GradientEdge]  # of each differentiable output, by position


def differentiable_outputs(output: Any) -> dict[int, Tensor]:
    """Find the tensors of a forward's output that have a graph.

    Args:
        output: a tensor, or tensors in tuples, lists, mappings, dataclasses.

    Returns:
        Position among the leaves of ``output``, and the tensor.
    """
    return {
        i: leaf
        for i, leaf in enumerate(_leaves(output))
        if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.grad_fn is not None
    }


def _leaves(output: Any) -> Iterator[Any]:
    for leaf in pytree.tree_leaves(output):
        if is_dataclass(leaf) and not isinstance(leaf, type):
            for field in fields(leaf):
                yield from _leaves(getattr(leaf, field.name, None))
        elif isinstance(leaf, Mapping):
            yield from _leaves(list(leaf.values()))
        else:
            yield leaf


def output_edges(output: Any) -> dict[int, GradientEdge]:
    """Remember where the outputs stand in the graph, whatever is done to the tensors later."""
    return {i: get_gradient_edge(z) for i, z in differentiable_outputs(output).items()}


def replayed_graph(
    loss: Tensor,
    forwards: Sequence[CapturedForward],
    model: nn.Module,
    view: ParameterView,
    *,
    weight: float = 1.0,
    thrice: bool = False,
) -> GradientGraph:
    """Build the gradient graph of a live loss from a replay of the forwards that led to it.

    Args:
        loss: a scalar about to be differentiated by the training loop; its graph must be kept
            (``retain_graph``) as long as the result is used.
        forwards: the root module's forwards since the last backward.
        model: the root module.
        view: the parameters.
        weight: of this loss in the total.
        thrice: whether third derivatives will be taken (``thrice_differentiable``).

    Returns:
        The graph of this loss.

    Raises:
        ReplayError: the loss does not come from captured forwards' outputs, or by way of a
            compiled function.
        NonfiniteError: the loss is NaN or infinite.
    """
    value, frontier, head = checked_head(loss, forwards, model)
    kernels = thrice_differentiable(model) if thrice else twice_differentiable(model)
    with kernels:
        replayed = replayed_outputs(forwards, frontier, model, view.device.type)
    gradients = torch.autograd.grad(
        replayed,
        view.parameters,
        grad_outputs=_HeadFunction.apply(head, *replayed),  # pyright: ignore[reportArgumentType]
        create_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    check_second_derivative(replayed, gradients, view)
    return GradientGraph(value, gradients, weight)


def checked_head(
    loss: Tensor, forwards: Sequence[CapturedForward], model: nn.Module
) -> tuple[float, list[tuple[int, int]], "LiveHead"]:
    """Find what lies between the model's outputs and a loss.

    Args:
        loss: see ``replayed_graph``.
        forwards: likewise.
        model: likewise.

    Returns:
        The loss; forward and position of each output that it depends on; the head.

    Raises:
        ReplayError: the loss does not come from captured forwards' outputs, or by way of a
            compiled function.
        NonfiniteError: the loss is NaN or infinite.
    """
    value = float(loss.detach())
    if not torch.isfinite(loss.detach()).all():
        raise NonfiniteError(f"The loss is {value}: its curvature is not defined.")
    frontier = _frontier(loss, forwards)
    if not frontier:
        raise ReplayError(
            f"The loss depends on no forward of {type(model).__name__} that was seen. Pass loss= "
            "(a closure over a probe batch) to measure this loop."
        )
    _require_keepable(forwards[k].edges[i] for k, i in frontier)
    return value, frontier, LiveHead.of(loss, [forwards[k].edges[i] for k, i in frontier])


def replayed_outputs(
    forwards: Sequence[CapturedForward],
    frontier: Sequence[tuple[int, int]],
    model: nn.Module,
    device: str,
) -> list[Tensor]:
    """Run forwards again at the model's present parameters.

    Args:
        forwards: what they were given.
        frontier: forward and position of the outputs wanted.
        model: the root module.
        device: type of the device, for autocast.

    Returns:
        The outputs, with their graph.

    Raises:
        ReplayError: there is no output in such a place.
    """
    outputs = {k: _replay(forwards[k], model, device) for k in sorted({k for k, _ in frontier})}
    if not all(i in outputs[k] for k, i in frontier):
        raise ReplayError(
            "The replayed forward returned other outputs than the training step's. The model's "
            "forward depends on state that lipprof cannot see; pass loss= instead."
        )
    return [outputs[k][i] for k, i in frontier]


def _replay(forward: CapturedForward, model: nn.Module, device: str) -> dict[int, Tensor]:
    enabled, dtype = forward.autocast
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model, buffers=forward.buffers))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled))
        forward.random_state.restore()
        return differentiable_outputs(model(*forward.arguments, **forward.keywords))


@dataclass(frozen=True, slots=True)
class LiveHead:
    """Functions of some places in the live graph, as far as their derivatives need it."""

    edges: Sequence[GradientEdge]
    values: Sequence[Tensor]  # with their graph

    @classmethod
    def of(cls, loss: Tensor, edges: Sequence[GradientEdge]) -> "LiveHead":
        """Take g_z, the gradient of a loss by the places z."""
        return cls(edges, torch.autograd.grad(loss.reshape(()), edges, create_graph=True))

    def vector_product(
        self, vectors: Sequence[Tensor], *, create_graph: bool = False
    ) -> Sequence[Tensor | None]:
        """Differentiate Σ vectors · values by the edges; for g_z: H_head u.

        Args:
            vectors: one for each value.
            create_graph: whether the derivatives have a graph themselves.

        Returns:
            One derivative per edge; None for an edge without influence.

        Raises:
            NoSecondDerivativeError: an operator in the head has none.
        """  # noqa: DOC501 - whatever else torch raises is passed on
        curved = [i for i, value in enumerate(self.values) if value.requires_grad]
        if not curved:
            return [None] * len(self.edges)
        try:
            return torch.autograd.grad(
                [self.values[i] for i in curved],
                self.edges,
                grad_outputs=[vectors[i] for i in curved],
                retain_graph=True,
                create_graph=create_graph,
                allow_unused=True,
            )
        except RuntimeError as error:
            if not is_missing_second_derivative(error):
                raise
            raise NoSecondDerivativeError(
                f"An operator between the model's output and the loss has no second derivative: "
                f"{str(error).splitlines()[0]}."
            ) from error


class _HeadFunction(torch.autograd.Function):
    """The values of a live head as a function of other tensors in the places of its edges."""

    @staticmethod
    def forward(ctx: Any, head: LiveHead, *places: Tensor) -> tuple[Tensor, ...]:
        ctx.head = head
        ctx.save_for_backward(*places)
        return tuple(value.detach().clone() for value in head.values)

    @staticmethod
    def backward(ctx: Any, *vectors: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():  # no create_graph
            return None, *ctx.head.vector_product(vectors)
        live = [vector.detach().requires_grad_() for vector in vectors]
        products = ctx.head.vector_product(live, create_graph=True)
        found = [i for i, product in enumerate(products) if product is not None]
        edges = [*ctx.head.edges, *(get_gradient_edge(vector) for vector in live)]
        head = LiveHead(edges, [products[i] for i in found])
        values = _HeadFunction.apply(head, *ctx.saved_tensors, *vectors) if found else ()
        complete = dict(zip(found, values, strict=True))
        return None, *(complete.get(i) for i in range(len(products)))


def _require_keepable(edges: Iterable[GradientEdge]) -> None:
    """Refuse a graph that its own backward could not run through if it were kept.

    Raises:
        ReplayError: a compiled function is part of it, which gives its buffers away.
    """
    _, passed = walk([(edge.node, edge.output_nr) for edge in edges], ())
    if any("CompiledFunction" in node.name() for node in passed):
        raise ReplayError(
            "The model's forward ran in a compiled function, whose graph cannot be kept while the "
            "training step differentiates it."
        )


def _frontier(loss: Tensor, forwards: Sequence[CapturedForward]) -> list[tuple[int, int]]:
    """Find the outputs that the loss depends on directly, not through another output.

    A model may return both logits and the loss computed from them; cutting the graph at both
    would count the logits twice.

    Returns:
        Forward and position among its outputs, in rising order; empty when the loss does not
        depend on the outputs.

    Raises:
        ReplayError: a compiled function lies in between.
    """
    position_of = {
        (edge.node, edge.output_nr): (k, i)
        for k, forward in enumerate(forwards)
        for i, edge in forward.edges.items()
    }
    reached, passed = walk([place_of(loss)], position_of)
    if any("CompiledFunction" in node.name() for node in passed):
        raise ReplayError(
            "Between the model's output and the loss lies a compiled function, which has no second "
            "derivative. Compile the model alone, or pass loss= to lipprof."
        )
    return sorted(position_of[place] for place in reached)
