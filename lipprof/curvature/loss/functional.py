"""A loss closure as a function of all tensors of its model, and the microbatches it is given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from lipprof.curvature.parameters import ParameterView


@dataclass(frozen=True, slots=True)
class Microbatch:
    """A batch of the probe; ``arguments`` is () for closures that take the model alone."""

    arguments: tuple[Any, ...] = ()
    weight: float = 1.0  # in the total

    def tensors(self) -> list[Tensor]:
        """The tensors in it, in a fixed order."""
        return [leaf.detach() for leaf in self._leaves() if isinstance(leaf, Tensor)]

    def refilled(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        """The arguments, with other tensors in the places of ``tensors()``."""
        rest = iter(tensors)
        leaves = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves()]
        return pytree.tree_unflatten(leaves, pytree.tree_structure(self.arguments))

    def signature(self) -> tuple[Any, ...]:
        """What a trace of it depends on: structure, geometry of tensors, other values."""
        leaves = tuple(
            geometry(leaf) if isinstance(leaf, Tensor) else (type(leaf), repr(leaf))
            for leaf in self._leaves()
        )
        return pytree.tree_structure(self.arguments), leaves

    def _leaves(self) -> list[Any]:
        return pytree.tree_leaves(self.arguments)


def geometry(tensor: Tensor) -> tuple[Any, ...]:
    """Shape, strides, dtype and device."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


class FunctionalLoss:
    """The closure at given θ and given other tensors (frozen parameters, buffers) of the model."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], view: ParameterView) -> None:
        self.model, self.loss, self.view = model, loss, view
        self._closure = _Closure(model, loss)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._names = [f"model.{names[id(parameter)]}" for parameter in view.parameters]

    def state(self) -> dict[str, Tensor]:
        """The model's present tensors besides θ."""
        own = {id(parameter) for parameter in self.view.parameters}
        tensors = (*self.model.named_parameters(), *self.model.named_buffers())
        return {f"model.{name}": t.detach() for name, t in tensors if id(t) not in own}

    def signature(self) -> tuple[Any, ...]:
        """What a trace of the model depends on: geometry of its tensors, modes of its modules."""
        return (
            tuple(geometry(parameter) for parameter in self.view.parameters),
            tuple((name, geometry(tensor)) for name, tensor in self.state().items()),
            tuple(module.training for module in self.model.modules()),
        )

    def plain(self, arguments: tuple[Any, ...]) -> Tensor:
        """Evaluate the closure on the model as it is, with a graph."""
        with torch.enable_grad():
            return self.loss(self.model, *arguments)

    def __call__(
        self, theta: Sequence[Tensor], state: dict[str, Tensor], arguments: tuple[Any, ...]
    ) -> Tensor:
        """Evaluate the closure on a model with these tensors."""
        tensors = {**dict(zip(self._names, theta, strict=True)), **state}
        return functional_call(self._closure, tensors, arguments)


class _Closure(nn.Module):
    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *arguments: Any) -> Tensor:
        return self.loss(self.model, *arguments)
