"""Operators without a second derivative: which one, and where in the network it stands.

torch says only the name of a kernel, or nothing at all and leaves a part of the Hessian out.  The
autograd graph knows more: the operator's forward node is in it, and following that node's inputs
down to the first parameter gives a place that its author recognises.
"""

import logging
import re
from collections import deque
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, once_differentiable
from torch.autograd.graph import Node

from lipprof.curvature.loss.graph_walk import graph_nodes
from lipprof.curvature.parameters import ParameterView
from lipprof.errors import NoSecondDerivativeError

_log = logging.getLogger("lipprof")

_SIGNS = ("not implemented", "double backward", "differentiate twice")
_KERNEL = re.compile(r"(?:aten::|')_?(?P<name>\w+?)_backward\b")
_WAY_OUT = (
    "Use a plain implementation of it where lipprof.is_probing() (fused attention, cuDNN recurrent "
    "layers and compilation are turned off already, unless the model asks for them itself), or "
    "backend='differences': central differences of gradients, which need no second derivative."
)


def is_missing_second_derivative(error: RuntimeError) -> bool:
    """Whether torch failed because an operator cannot be differentiated twice."""
    return any(sign in str(error) for sign in _SIGNS)


def missing_second_derivative(
    error: RuntimeError, gradients: Sequence[Tensor], view: ParameterView
) -> NoSecondDerivativeError:
    """Word the failure of a product for the user.

    Args:
        error: torch's.
        gradients: with their graph, in which the operator is looked for.
        view: names the parameters beside it.

    Returns:
        The error to raise.
    """
    reason = str(error).strip().splitlines()[0].rstrip(".")
    kernel = _KERNEL.search(reason)
    if kernel is None:
        return NoSecondDerivativeError(
            f"An operator in the model has no second derivative: {reason}. {_WAY_OUT}"
        )
    wanted = f"{kernel['name']}_backward".replace("_", "").lower()
    nodes = [n for n in graph_nodes(gradients) if n.name().rstrip("0123456789").lower() == wanted]
    return NoSecondDerivativeError(
        f"The operator {kernel['name']}{_beside(nodes, view)} has no second derivative: {reason}. "
        f"{_WAY_OUT}"
    )


def differentiate_again(
    gradients: Sequence[Tensor],
    inputs: Sequence[Tensor],
    vectors: Sequence[Tensor],
    view: ParameterView,
    *,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """Differentiate Σᵢ gradientsᵢ · vectorsᵢ; the graph is kept.

    Args:
        gradients: with their graph.
        inputs: by which to differentiate.
        vectors: one for each gradient.
        view: names the parameters beside an operator that fails.
        create_graph: whether the derivatives have a graph themselves.

    Returns:
        One derivative per input; zeros where the sum does not depend on it.

    Raises:
        NoSecondDerivativeError: an operator in the graph has none.
    """  # noqa: DOC501 - whatever else torch raises is passed on
    try:
        return torch.autograd.grad(
            gradients,
            inputs,
            grad_outputs=vectors,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    except RuntimeError as error:
        if not is_missing_second_derivative(error):
            raise
        raise missing_second_derivative(error, gradients, view) from error


def check_second_derivative(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor], view: ParameterView | None = None
) -> None:
    """Refuse a graph in which torch would silently leave out a part of the Hessian.

    A Python ``autograd.Function`` marked ``once_differentiable`` cuts the gradient's graph, and the
    product with the Hessian then lacks what flows through it, without an error; where the incoming
    gradient is constant not even torch's own mark of it is in the graph.  Other such functions may
    or may not be differentiable twice; that is told once.

    Args:
        outputs: the loss, or the model's outputs, with their graph.
        gradients: of the loss, with theirs.
        view: names the parameters beside the function.

    Raises:
        NoSecondDerivativeError: a part of the gradient cannot be differentiated.
    """
    custom = [node for node in graph_nodes(outputs) if isinstance(node, BackwardCFunction)]
    if not custom:
        return
    names = ", ".join(sorted({node.name().removesuffix("Backward") for node in custom}))
    cut = any(node.name() == "torch::autograd::Error" for node in graph_nodes(gradients))
    if cut or any(_is_once_differentiable(node) for node in custom):
        raise NoSecondDerivativeError(
            f"A custom autograd function ({names}{_beside(custom, view)}) is marked "
            "once_differentiable: it has no second derivative, and torch would silently leave its "
            f"part of the Hessian out. {_WAY_OUT}"
        )
    _tell_unverified(names)


_ONCE = once_differentiable(lambda _: None).__code__  # one wrapper for all functions so marked


def _is_once_differentiable(node: BackwardCFunction) -> bool:
    function = getattr(node, "_forward_cls", None)
    return getattr(getattr(function, "backward", None), "__code__", None) is _ONCE


@cache
def _tell_unverified(names: str) -> None:
    _log.warning(
        "lipprof: the loss passes custom autograd functions (%s). Where their backward is not "
        "itself differentiable, torch leaves their part of the Hessian out; check one eigenvalue "
        "against a plain implementation.",
        names,
    )


def _beside(nodes: Iterable[Node], view: ParameterView | None) -> str:
    """Say which parameters feed the nodes most directly; empty where none is found."""
    if view is None:
        return ""
    name_of = {id(p): name for p, name in zip(view.parameters, view.names, strict=True)}
    names = dict.fromkeys(filter(None, (_nearest(node, name_of) for node in nodes)))
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f" behind {', '.join(map(repr, sorted(names)[:3]))}{more}"


def _nearest(node: Node, name_of: dict[int, str]) -> str | None:
    queue, seen = deque([node]), {node}
    while queue:
        node = queue.popleft()
        name = name_of.get(id(getattr(node, "variable", None)))
        if name is not None:
            return name
        following = [n for n, _ in node.next_functions if n is not None and n not in seen]
        seen.update(following)
        queue.extend(following)
    return None


def computing_dtypes(loss: Any) -> set[torch.dtype]:
    """Floating dtypes of the results along the graph of a loss; float64 where there is no graph."""
    nodes = graph_nodes([loss]) if isinstance(loss, Tensor) else ()
    found = {part.dtype for node in nodes for part in node._input_metadata}
    return {dtype for dtype in found if dtype.is_floating_point} or {torch.float64}
