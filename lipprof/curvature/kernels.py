"""Kernels that can be differentiated twice, or three times.

Fused attention, the recurrent layers of cuDNN and oneDNN, and compiled graphs have no second
derivative.  What matters is which kernel the *forward* chose; under these settings it chooses one
that has.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lipprof.curvature.decompositions import decomposed


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Let forwards of the model choose twice differentiable kernels.

    Attention by plain matrix products; weight normalisation written out (``decompositions``);
    recurrent layers outside cuDNN and oneDNN; compiled modules run eagerly (which recompiles
    nothing afterwards).

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


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it was given to ``torch.compile``."""
    return any(
        module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
        for module in model.modules()
    )
