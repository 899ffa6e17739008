"""Seeing a loop's backward before it runs: ``torch.autograd.backward`` is wrapped while needed.

``Tensor.backward`` calls it by that name, so both ways of asking are seen.  ``GradScaler.scale`` is
wrapped along with it, since the loss that arrives here was multiplied by its factor.  Both are
wrapped only from ``intercept_backward`` to the removal of the last listener: on the iterations that
are measured, and on no other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.utils import _pytree as pytree

from lipprof.curvature import is_probing, uncompiled


@dataclass(slots=True)
class BackwardCall:
    """One call of ``torch.autograd.backward`` that is about to happen."""

    tensors: Any
    arguments: tuple[Any, ...]  # grad_tensors, retain_graph, create_graph
    keywords: dict[str, Any]
    keep_graph: bool = False

    @property
    def loss(self) -> Tensor | None:
        """The scalar that is differentiated; None: it is none.

        Of several scalars with weights it is the weighted sum.
        """
        tensors = [self.tensors] if isinstance(self.tensors, Tensor) else list(self.tensors)
        given = self.arguments[0] if self.arguments else self.keywords.get("grad_tensors")
        weights = [given] if given is None or isinstance(given, Tensor) else list(given)
        if not tensors or any(tensor.numel() != 1 for tensor in tensors):
            return None
        if len(tensors) == 1 and weights == [None]:
            return tensors[0]
        weights = weights * len(tensors) if len(weights) == 1 else weights
        with torch.enable_grad():
            parts = [
                tensor.reshape(()) * (1.0 if weight is None else weight.detach().reshape(()))
                for tensor, weight in zip(tensors, weights, strict=True)
            ]
            return torch.stack(parts).sum()

    @property
    def loss_scale(self) -> float:
        """The factor by which a GradScaler multiplied the loss."""
        first = self.tensors if isinstance(self.tensors, Tensor) else self.tensors[0]
        return getattr(first, "_lipprof_scale", 1.0)

    def proceed(self) -> None:
        """Do what the loop asked for."""
        if self.keep_graph and len(self.arguments) > 1:
            self.arguments = (self.arguments[0], True, *self.arguments[2:])
        elif self.keep_graph:
            self.keywords["retain_graph"] = True
        _backward(self.tensors, *self.arguments, **self.keywords)


Listener = Callable[[BackwardCall], Callable[[], None] | None]
"""Is called before a backward; may return what shall be called after it."""

_backward = torch.autograd.backward
_scale = GradScaler.scale
_listeners: list[Listener] = []
_running = False


def backward_is_running() -> bool:
    """Whether a backward that was seen to begin has not ended yet."""
    return _running


def intercept_backward(listener: Listener) -> Callable[[], None]:
    """Let ``listener`` see every backward from now on.

    Args:
        listener: must not raise.

    Returns:
        A function that ends it.
    """
    global _backward, _scale
    if not _listeners:
        _backward, _scale = torch.autograd.backward, GradScaler.scale
        torch.autograd.backward = uncompiled(_intercepted_backward)
        GradScaler.scale = _marking_scale
    _listeners.append(listener)

    def remove() -> None:
        if listener in _listeners:
            _listeners.remove(listener)
            if not _listeners:
                torch.autograd.backward, GradScaler.scale = _backward, _scale

    return remove


def _intercepted_backward(tensors: Any, *arguments: Any, **keywords: Any) -> None:
    global _running
    call = BackwardCall(tensors, arguments, keywords)
    nested = _running or is_probing()  # reentrant checkpoints run backwards within a backward
    afterwards = [] if nested else [listener(call) for listener in list(_listeners)]
    outer, _running = _running, True
    try:
        call.proceed()
    finally:
        _running = outer
    for afterward in afterwards:
        if afterward is not None:
            afterward()


def _marking_scale(self: GradScaler, outputs: Any) -> Any:
    scaled = _scale(self, outputs)
    if scaled is not outputs:
        for tensor in pytree.tree_leaves(scaled):
            if isinstance(tensor, Tensor):
                tensor._lipprof_scale = self.get_scale()  # pyright: ignore[reportAttributeAccessIssue]
    return scaled
