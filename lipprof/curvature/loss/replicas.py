"""One rank of data-parallel training measures its own replica, without a word to the others.

``DistributedDataParallel`` averages gradients in hooks that ``torch.autograd.grad`` does not
reach, and synchronises in its own forward only; the module that it wraps can be evaluated and
differentiated alone, while the other ranks wait at their next collective.  What would communicate
by itself is refused (``check_replica``) or found before it does (``without_collectives``): a
collective that one rank enters alone never returns.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from lipprof.curvature.parameters import ParameterView
from lipprof.errors import AttachError, ReplayError

_NAMESPACES = {"c10d", "_c10d_functional", "c10d_functional"}


def process_count() -> int:
    """Processes of the default group; 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Rank in the default group; 0 where there is none."""
    return dist.get_rank() if process_count() > 1 else 0


def check_replica(model: nn.Module) -> nn.Module:
    """Find the part of a model that this process can evaluate alone.

    Args:
        model: as the loop calls it.

    Returns:
        What ``DistributedDataParallel`` wraps, or else the model.

    Raises:
        AttachError: its forward or backward takes the other processes.
    """
    for module in model.modules():
        kind = type(module).__name__
        if kind.startswith("FullySharded") or any(
            hasattr(parameter, "placements") for parameter in module.parameters(recurse=False)
        ):
            raise AttachError(
                f"The parameters are sharded over processes ({kind}): no single one has the model. "
                "lipprof profiles DistributedDataParallel, and models in one process."
            )
        if isinstance(module, nn.SyncBatchNorm):
            raise AttachError(
                "SyncBatchNorm communicates in every forward, and a measurement runs on one "
                "process alone. Use BatchNorm, or profile a single process."
            )
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        return model
    if getattr(model, "static_graph", False):
        raise AttachError(
            "DistributedDataParallel(static_graph=True) communicates at moments that it learns "
            "from the first iteration. Leave it out, or profile a single process."
        )
    return model.module


class _Refusing(TorchDispatchMode):
    """Raises at an operation that communicates."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace in _NAMESPACES:
            raise ReplayError(
                f"The step communicates with other processes ({func}) in its forward or loss, and "
                "a measurement runs on one alone."
            )
        return func(*args, **(kwargs or {}))


def without_collectives() -> AbstractContextManager[Any]:
    """Let communication raise ``ReplayError`` meanwhile; nothing to do in a single process."""
    return _Refusing() if process_count() > 1 else nullcontext()


def watch_gradients(view: ParameterView) -> Callable[[], list[Tensor | None]]:
    """Watch what the next backward contributes to each gradient, before ranks average it.

    Args:
        view: the parameters.  Memory: a copy of each gradient.

    Returns:
        A function that ends it and gives the contributions; None: there was none.
    """
    seen: list[Tensor | None] = [None] * len(view.parameters)

    def taking(index: int) -> Callable[[Tensor], None]:
        def take(gradient: Tensor) -> None:
            known, new = seen[index], gradient.detach()
            seen[index] = new.clone() if known is None else known + new

        return take

    handles = [
        parameter.register_hook(taking(index)) for index, parameter in enumerate(view.parameters)
    ]

    def end() -> list[Tensor | None]:
        for handle in handles:
            handle.remove()
        return seen

    return end
