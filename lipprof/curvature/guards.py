"""What a measurement puts back: RNG states, buffers, train/eval flags, ``.grad``, attributes.

Attributes of modules are what a forward may leave in them besides: counters, auxiliary losses set
aside, cached tensors; lists, dicts and sets are restored by their items.

Buffers are not copied back but swapped out: the model computes on clones, and the original tensors
are never written to.  (Restoring by ``copy_`` would bump their version counters, and a training
graph that saved them could no longer be differentiated.)
"""

import random
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_probing: ContextVar[bool] = ContextVar("lipprof_probing", default=False)


def is_probing() -> bool:
    """Whether a measurement is running: hooks of yours that log or clip may want to stand aside."""
    return _probing.get()


@contextmanager
def probing() -> Iterator[None]:
    """Let ``is_probing`` say so meanwhile.

    Yields:
        Once.
    """
    token = _probing.set(True)
    try:
        yield
    finally:
        _probing.reset(token)


@dataclass(frozen=True, slots=True)
class RandomState:
    """The state of every random number generator that a forward pass may draw from."""

    cpu: Tensor
    cuda: list[Tensor]
    python: tuple[Any, ...]
    numpy: dict[str, Any] | tuple[str, Any, int, int, float]

    @classmethod
    def capture(cls) -> "RandomState":
        """Read the present state; CUDA devices only where CUDA is in use."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return cls(torch.get_rng_state(), cuda, random.getstate(), np.random.get_state())

    def restore(self) -> None:
        """Set the present state to this one."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        random.setstate(self.python)
        np.random.set_state(self.numpy)


def clone_buffers(model: nn.Module) -> dict[int, Tensor]:
    """Copy all buffers; the keys are ids of the originals, so that shared ones stay shared."""
    return {id(buffer): buffer.clone() for buffer in model.buffers()}


@contextmanager
def undisturbed(
    model: nn.Module,
    *,
    buffers: Mapping[int, Tensor] | None = None,
    training: bool | None = None,
) -> Iterator[None]:
    """Run code on the model so that afterwards nothing has changed.

    Args:
        model: the model.
        buffers: values that the buffers shall have meanwhile (``clone_buffers``); default: theirs.
        training: mode of all modules meanwhile; None: as they are.

    Yields:
        Once, inside the guard.
    """
    state = RandomState.capture()
    flags = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        with probing(), _kept_attributes(model), _swapped_buffers(model, buffers or {}):
            if training is not None:
                model.train(training)
            yield
    finally:
        for module, flag in flags:
            module.training = flag
        for parameter, gradient in gradients:
            parameter.grad = gradient
        state.restore()


@contextmanager
def _swapped_buffers(model: nn.Module, values: Mapping[int, Tensor]) -> Iterator[None]:
    originals = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    copies = {id(buffer): values.get(id(buffer), buffer).clone() for _, _, buffer in originals}
    try:
        for module, name, buffer in originals:
            module._buffers[name] = copies[id(buffer)]
        yield
    finally:
        for module, name, buffer in originals:
            module._buffers[name] = buffer


_INTERNAL = frozenset(vars(nn.Module()))


@contextmanager
def _kept_attributes(model: nn.Module) -> Iterator[None]:
    before = [
        (vars(module), {k: v for k, v in vars(module).items() if k not in _INTERNAL})
        for module in model.modules()
    ]
    containers = [
        (value, value.copy())
        for _, attributes in before
        for value in attributes.values()
        if type(value) in _CONTAINERS
    ]
    try:
        yield
    finally:
        for present, attributes in before:
            for name in present.keys() - attributes.keys() - _INTERNAL:
                del present[name]
            for name, value in attributes.items():
                if present.get(name) is not value:
                    present[name] = value
        for container, items in containers:
            container.clear()
            _CONTAINERS[type(container)](container, items)


_CONTAINERS: dict[type[Any], Any] = {
    list: list.extend,
    dict: dict.update,
    set: set.update,
    deque: deque.extend,
}
