"""How much memory Hessian-vector products will take, known before any of it is spent.

The very code that will run is run with fake tensors, which have shapes and lifetimes but no data,
while their storages are counted from allocation to release.  What an operator allocates and frees
within itself is not seen but for convolutions on a CPU (``workspace``).
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lipprof.curvature.hessian.retained import GradientGraph, HessianOperator
from lipprof.curvature.hessian.traced import TracedHessian, TracedHessianOperator
from lipprof.curvature.hessian.workspace import workspace_bytes
from lipprof.curvature.loss.functional import FunctionalLoss, Microbatch
from lipprof.curvature.parameters import ParameterView


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes beyond those of the model, its gradients and the optimizer."""

    held: int  # as long as the operator lives
    peak: int  # at most, while it is built or applied

    def __add__(self, other: "Footprint") -> "Footprint":
        """Of two microbatches, one after the other, both held."""
        working = max(self.peak - self.held, other.peak - other.held)
        held = self.held + other.held
        return Footprint(held, held + working)


class AllocationCounter(TorchDispatchMode):
    """Counts the bytes of the storages that operators return, until they are released."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and count what is new.

        Returns:
            What the operator returns.
        """
        given = set(_storages((args, kwargs)))
        result = func(*args, **(kwargs or {}))
        for identity, storage in _storages(result).items():
            if identity not in given and identity not in self._known:
                self._count(identity, storage)
        self.peak = max(self.peak, self.live + workspace_bytes(func, args, result))
        return result

    def _count(self, identity: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self._known.add(identity)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, identity, size)

    def _release(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self.live -= size


def _storages(tree: Any) -> dict[int, torch.UntypedStorage]:
    leaves = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {leaf.untyped_storage()._cdata: leaf.untyped_storage() for leaf in leaves}


def retained_footprint(functional: FunctionalLoss, probe: Sequence[Microbatch]) -> Footprint:
    """Predict the memory of a ``HessianOperator`` over retained gradient graphs.

    Args:
        functional: the loss.
        probe: all microbatches; one of each shape is tried.

    Returns:
        The sum over the microbatches.
    """

    def build(dry: _DryRun, microbatch: Microbatch) -> HessianOperator:
        arguments = microbatch.refilled(dry.fakes(microbatch.tensors()))
        with torch.enable_grad():
            loss = functional(dry.view.parameters, dry.state, arguments)
            gradients = torch.autograd.grad(
                loss.reshape(()),
                dry.view.parameters,
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        return HessianOperator(dry.view, [GradientGraph(0.0, gradients)])

    return _total(functional, probe, build)


def traced_footprint(hessian: TracedHessian, probe: Sequence[Microbatch]) -> Footprint:
    """Predict the memory of a ``TracedHessianOperator``; traces the loss where that is not done.

    Args:
        hessian: the traces.
        probe: all microbatches; one of each shape is tried.

    Returns:
        The sum over the microbatches.
    """

    def build(dry: _DryRun, microbatch: Microbatch) -> TracedHessianOperator:
        theta = [parameter.detach() for parameter in dry.view.parameters]
        batch = dry.fakes(microbatch.tensors())
        operator = TracedHessianOperator(dry.view)
        operator.add(hessian.trace(microbatch), [*theta, *dry.state.values(), *batch], 1.0)
        return operator

    for microbatch in probe:
        hessian.trace(microbatch)
    return _total(hessian.functional, probe, build)


class _DryRun:
    """A model's tensors without data."""

    def __init__(self, functional: FunctionalLoss) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        view = functional.view
        parameters = [fake.requires_grad_() for fake in self.fakes(_detached(view.parameters))]
        self.view = ParameterView(zip(view.names, parameters, strict=True))
        state = functional.state()
        self.state = dict(zip(state, self.fakes(list(state.values())), strict=True))

    def fakes(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of the same geometry."""
        return [self.mode.from_tensor(tensor) for tensor in tensors]


def _detached(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach() for tensor in tensors]


def _total(
    functional: FunctionalLoss,
    probe: Sequence[Microbatch],
    build: Callable[[_DryRun, Microbatch], Any],
) -> Footprint:
    known: dict[Any, Footprint] = {}
    for microbatch in probe:
        key = microbatch.signature()
        if key not in known:
            dry = _DryRun(functional)
            with dry.mode:
                vector = torch.empty(dry.view.n, dtype=dry.view.dtype, device=dry.view.device)
                with AllocationCounter() as counter:
                    operator = build(dry, microbatch)
                    held = counter.live
                    operator.matvec(vector)
            known[key] = Footprint(held, counter.peak)
    first, *rest = (known[microbatch.signature()] for microbatch in probe)
    return sum(rest, first)
