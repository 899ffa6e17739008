"""Where a network ends and its loss head begins, read from the graph of a loss.

1. At the logits, if the loss is a linear combination of cross-entropies (any reduction, mask or
   scale) and depends on the parameters through nothing else.  The head then has a closed form
   (``cross_entropy``), and it does not matter whether the cross-entropy is computed by the loop or
   inside a model that returns its loss.
2. Else at the outputs of the root module, several forwards together; the head's Hessian is that of
   double backward.

What fits neither is refused: outputs that are the loss itself, penalties on the parameters.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node
from torch.utils import _pytree as pytree

from lipprof.curvature.cross_entropy import CrossEntropyCall, CrossEntropyHead
from lipprof.curvature.loss.graph_walk import Place, place_of, places_before, walk
from lipprof.curvature.loss.replay import LiveHead
from lipprof.curvature.parameters import ParameterView
from lipprof.errors import CurvatureError


@runtime_checkable
class LossHead(Protocol):
    """The loss as a function of z, as far as G needs it."""

    def vector_product(self, vectors: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """H_head u, one tensor for each output; None for an output without curvature."""
        ...


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the network ends: the outputs, tensors like them, and the head after them."""

    outputs: Sequence[GradientEdge]
    likes: Sequence[Tensor]
    head: LossHead


def find_cut(
    loss: Tensor,
    calls: Sequence[CrossEntropyCall],
    outputs: Mapping[Place, Tensor],
    view: ParameterView,
) -> Cut:
    """Find where the network ends.

    Args:
        loss: a scalar with its graph.
        calls: the cross-entropies of its evaluation.
        outputs: those of the root module, see ``recorded_outputs``.
        view: the parameters.

    Returns:
        The cut, at the logits if possible.

    Raises:
        CurvatureError: there is no cut through which all the loss depends on the parameters, or
            the head is linear.
    """
    return _cut_at_logits(loss, calls, view) or _cut_at_outputs(loss, outputs, view)


def _cut_at_logits(
    loss: Tensor, calls: Sequence[CrossEntropyCall], view: ParameterView
) -> Cut | None:
    """Cut at the logits, unless the loss is more than a linear combination of cross-entropies."""
    places = {(call.result.node, call.result.output_nr): call for call in calls}
    reached, around = walk([place_of(loss)], places)
    if not reached or _names(around, view):
        return None
    used = [places[place] for place in reached]
    coefficients = torch.autograd.grad(loss, [call.result for call in used], create_graph=True)
    if any(coefficient.requires_grad for coefficient in coefficients):
        return None
    head = CrossEntropyHead(used, coefficients)
    return Cut([call.edge for call in used], [call.logits for call in used], head)


def _cut_at_outputs(loss: Tensor, outputs: Mapping[Place, Tensor], view: ParameterView) -> Cut:
    """Cut at the outputs of the root module that are not themselves the loss."""
    places = {place: like for place, like in outputs.items() if like.ndim > 0}
    reached, around = walk([place_of(loss)], places)
    if not reached and len(places) < len(outputs):
        raise CurvatureError(
            "The model returns its own loss, and the Gauss-Newton matrix of that is of rank one. "
            "Only a cross-entropy (F.cross_entropy) inside a model can be split off; else let the "
            "model also return what it computes the loss from, compute the loss in the closure, or "
            "use the Hessian."
        )
    if not reached:
        raise CurvatureError(
            "The loss does not come from a call of the model itself, so there is nothing to split "
            "into network and head. Call model(...) in the closure, not one of its parts."
        )
    if names := _names(around, view):
        raise CurvatureError(
            f"The loss depends on {', '.join(names[:3])} also around the model's outputs (a "
            "penalty, or a layer that the closure calls itself), which no Gauss-Newton matrix of "
            "these outputs explains. Leave it out of the closure, or use the Hessian."
        )
    nested, _ = walk(
        [following for place in reached for following in places_before(place)], reached
    )
    if nested:
        raise CurvatureError(
            "The loss uses an output of the model and another one computed from it. Use one of "
            "them, or the Hessian."
        )
    edges = [GradientEdge(*place) for place in reached]
    head = LiveHead.of(loss, edges)
    if not any(gradient.requires_grad for gradient in head.values):
        raise CurvatureError(
            "The loss is linear in the model's outputs, so its Gauss-Newton matrix is zero: part "
            "of the loss is probably computed by the model. Return what comes before it (logits, "
            "not log-probabilities or a loss), or use the Hessian."
        )
    return Cut(edges, [places[place] for place in reached], head)


@contextmanager
def recorded_outputs(model: nn.Module) -> Iterator[dict[Place, Tensor]]:
    """Note what the forwards of a model return, while in force.

    Args:
        model: the root module.

    Yields:
        The differentiable outputs by their places in the graph, detached; a dictionary that grows.
    """
    found: dict[Place, Tensor] = {}

    def note(_module: nn.Module, _arguments: Any, output: Any) -> None:
        for leaf in _tensors(output):
            if leaf.grad_fn is not None and leaf.is_floating_point():
                found[place_of(leaf)] = leaf.detach()

    handle = model.register_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            for field in fields(leaf):
                yield from _tensors(getattr(leaf, field.name))


def _names(passed: Iterable[Node], view: ParameterView) -> list[str]:
    """Names of the parameters among the leaves that were passed."""
    leaves = {id(getattr(node, "variable", None)) for node in passed}
    return [n for n, p in zip(view.names, view.parameters, strict=True) if id(p) in leaves]
