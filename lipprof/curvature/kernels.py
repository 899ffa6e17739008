"""Kernels that can be differentiated twice, or three times.

Fused attention, the recurrent layers of cuDNN and oneDNN, and compiled graphs have no second
derivative.  What matters is which kernel the *forward* chose; under these settings it chooses one
that has.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointFunction

from lipprof.curvature.third.decompositions import decomposed


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Let forwards of the model choose twice differentiable kernels.

    Attention by plain matrix products; weight normalisation written out (``decompositions``);
    recurrent layers outside cuDNN and oneDNN; compiled modules run eagerly (which recompiles
    nothing afterwards); reentrant checkpoints keep what they would compute again.

    Args:
        model: decides which of the settings are needed.

    Yields:
        Once, with the settings in force.
    """
    with ExitStack() as settings:
        settings.enter_context(sdpa_kernel(SDPBackend.MATH))
        settings.enter_context(decomposed(2))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            settings.enter_context(torch.backends.cudnn.flags(enabled=False))
            settings.enter_context(_without_onednn())
        if is_compiled(model):
            settings.enter_context(torch.compiler.set_stance("force_eager"))
        settings.enter_context(_without_reentrant_checkpoints())
        yield


@contextmanager
def thrice_differentiable(model: nn.Module) -> Iterator[None]:
    """Let forwards of the model choose kernels whose third derivative is right too.

    As ``twice_differentiable``, with the layers of ``decompositions`` written out.  To be kept in
    force during the derivatives: activation checkpoints run parts of the forward again there.

    Args:
        model: decides which of the settings are needed.

    Yields:
        Once, with the settings in force.
    """
    with twice_differentiable(model), decomposed(3):
        yield


@contextmanager
def _without_onednn() -> Iterator[None]:
    """``torch.backends.mkldnn.flags`` would do, but warns of TF32 on machines that have none."""
    enabled = torch.backends.mkldnn.set_flags(_enabled=False)[0]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=enabled)


@contextmanager
def _without_reentrant_checkpoints() -> Iterator[None]:
    """Let ``checkpoint(use_reentrant=True)`` call its function: its own backward runs only once."""

    def call(function: Callable[..., Any], _preserve: bool, *arguments: Any) -> Any:
        return function(*arguments)

    outer = vars(CheckpointFunction).get("apply")  # of this context within itself
    CheckpointFunction.apply = call
    try:
        yield
    finally:
        if outer is None:
            del CheckpointFunction.apply
        else:
            CheckpointFunction.apply = outer


@contextmanager
def without_compilation() -> Iterator[None]:
    """Run whatever was compiled eagerly; recompiles nothing, then or afterwards.

    Yields:
        Once.
    """
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep a function that compiled code may call from being compiled with it."""
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


def is_wrapped_by_compile(model: nn.Module) -> bool:
    """Whether the model is what ``torch.compile`` returned, with nothing compiled within."""
    inner = getattr(model, "_orig_mod", None)
    return isinstance(inner, nn.Module) and not is_compiled(inner)


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it was given to ``torch.compile``."""
    return any(
        module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
        for module in model.modules()
    )
