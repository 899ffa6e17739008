"""Whether an optimizer takes a tensor, found out before training.

Its constructor and two steps say it better than any list of rules: ``torch.optim.Muon`` refuses
what is no matrix when it is built, others only when they step.  The steps are taken on a small
tensor with as many dimensions (``TRIAL_SIZE`` entries each at most), of the same dtype, on the same
device; the global random numbers are left alone.

Slices are for optimizers whose step treats every entry alone.  Steps do not show that reliably
(Shampoo may begin to precondition at its tenth), so those are a list.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from lipprof.optim.arm import Factory, Group, check_step
from lipprof.optim.sophia import Sophia

TRIAL_SIZE = 4

# Exact types: a subclass may couple entries.
_ELEMENTWISE: set[type[Optimizer]] = {
    optim.ASGD,
    optim.Adadelta,
    optim.Adagrad,
    optim.Adam,
    optim.AdamW,
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
    optim.RMSprop,
    optim.Rprop,
    optim.SGD,
    Sophia,
}


def register_elementwise(kind: type[Optimizer]) -> None:
    """Say that an optimizer's step treats every entry alone, so that AMOS may hand it slices.

    Args:
        kind: the class; its subclasses are not meant.
    """
    _ELEMENTWISE.add(kind)


class Trials:
    """What one optimizer refuses, each kind of tensor tried once."""

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        self._known: dict[tuple[Any, ...], str | None] = {}

    def refusal(self, tensor: Tensor, group: int, hyper: Group, *, is_slice: bool) -> str | None:
        """Say why the optimizer does not take a tensor.

        Args:
            tensor: the tensor.
            group: the number of its group.
            hyper: hyperparameters of the group.
            is_slice: whether it is a part of a parameter.

        Returns:
            The optimizer's own error message, or that it is none for slices; None: it takes it.

        Raises:
            ConfigError: the optimizer's step needs a closure.
        """  # noqa: DOC502 - raised by the check
        key = (tensor.shape, tensor.dtype, tensor.device, group, is_slice)
        if key not in self._known:
            self._known[key] = self._refusal(tensor, hyper, is_slice)
        return self._known[key]

    def _refusal(self, tensor: Tensor, hyper: Group, is_slice: bool) -> str | None:
        try:
            optimizer = self._factory([{"params": [tensor], **hyper}])
        except Exception as error:
            return _message(error)
        groups = optimizer.param_groups if isinstance(optimizer, Optimizer) else []
        if [id(p) for held in groups for p in held["params"]] != [id(tensor)]:
            return (
                f"the factory returned a {type(optimizer).__name__} that is not an optimizer of "
                "just the parameters it was given; pass one that builds it, such as "
                "functools.partial(SGD, lr=...)"
            )
        check_step(optimizer, "AMOS")
        if is_slice and type(optimizer) not in _ELEMENTWISE:
            kind = type(optimizer).__name__
            return (
                f"{kind} is not known to treat every entry alone, and this is a slice of a tensor "
                f"(lipprof.optim.register_elementwise({kind}) where it does)"
            )
        return None if tensor.is_meta else self._try(tensor, hyper)

    def _try(self, like: Tensor, hyper: Group) -> str | None:
        """Step with a dense gradient, or, where that is refused, a sparse one."""
        devices = [like.device] if like.device.type == "cuda" else []
        shape = [min(size, TRIAL_SIZE) for size in like.shape]
        message = None
        for layout in (torch.strided, torch.sparse_coo):
            try:
                with torch.random.fork_rng(devices), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self._steps(like.new_ones(shape), layout, hyper)
            except Exception as error:
                message = message or _message(error)
            else:
                return None
        return message

    def _steps(self, tensor: Tensor, layout: torch.layout, hyper: Group) -> None:
        parameter = nn.Parameter(tensor)
        ramp = torch.linspace(0.1, 1, tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        gradient = ramp.view(tensor.shape)
        parameter.grad = gradient if layout is torch.strided else gradient.to_sparse()
        optimizer = self._factory([{"params": [parameter], **hyper}])
        for _ in range(2):
            optimizer.step()


def _message(error: Exception) -> str:
    return str(error) or type(error).__name__
