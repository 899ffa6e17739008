"""Fused layers whose higher derivatives torch gets wrong, written out in plain operators.

The second derivative of a fused normalisation treats the statistics that its forward saved as
constants.  Differentiated once more, what flows through them is missing, in every precision and
without an error.  Against differences of exact products in float64, torch 2.13 is off by 15 to 70 %
of the whole vector for layer_norm, batch_norm in train mode and instance_norm.  For weight_norm
(on the CPU) the second derivative is wrong already, by 57 % of its part for the direction v.

Right to 1e-6 as they are: group_norm, rms_norm, batch_norm in eval mode; softmax, log_softmax,
cross_entropy (label smoothing, weights, soft targets), binary_cross_entropy with and without
logits, mse, huber, kl_div; GELU (both), SiLU, Mish, softplus, ELU; attention by matrix products,
MultiheadAttention; convolutions, also transposed and grouped, pooling, upsampling; LSTM, GRU, RNN;
embedding and dropout (of a fixed seed); norm, std, prod, cumprod.

What is replaced are the functions in the namespace of ``torch`` that ``torch.nn.functional`` and
the modules of ``torch.nn`` call; values agree with the fused kernels' to rounding.  (A
``TorchFunctionMode`` would not do: ``torch.autograd.grad`` suspends it, and activation checkpoints
run parts of the forward again in there.)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor


@contextmanager
def decomposed(derivative: Literal[2, 3]) -> Iterator[None]:
    """Compute layers by their formulas, in this process, while in force.

    Args:
        derivative: which one the layers to be replaced get wrong; 3 includes those of 2.

    Yields:
        Once, with the formulas in force.
    """
    formulas = _SECOND if derivative == 2 else _SECOND | _THIRD
    before = {name: getattr(torch, name) for name in formulas}
    try:
        for name, formula in formulas.items():
            setattr(torch, name, formula)
        yield
    finally:
        for name, function in before.items():
            setattr(torch, name, function)


def _layer_norm(
    input: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: ARG001
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    return _affine(_standardised(input, axes, eps), weight, bias, input)


def _with_own_statistics(fused: Callable[..., Tensor], over_batch: bool) -> Callable[..., Tensor]:
    """Write out batch_norm or instance_norm where it does not use running statistics."""

    def formula(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        own_statistics: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Tensor:
        rest = running_mean, running_var, own_statistics, momentum, eps, cudnn_enabled
        if not own_statistics:
            return fused(input, weight, bias, *rest)
        with torch.no_grad():  # updates the running statistics
            fused(input, None, None, *rest)
        axes = (0,) * over_batch + tuple(range(2, input.ndim))
        shape = (1, -1, *[1] * (input.ndim - 2))
        weight, bias = (None if p is None else p.view(shape) for p in (weight, bias))
        return _affine(_standardised(input, axes, eps), weight, bias, input)

    return formula


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _standardised(input: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """Half precision is widened, as the fused kernels do inside."""
    wide = input.float() if input.dtype.itemsize < 4 else input
    centred = wide - wide.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)


def _affine(unit: Tensor, weight: Tensor | None, bias: Tensor | None, input: Tensor) -> Tensor:
    if weight is not None:
        unit = unit * weight
    if bias is not None:
        unit = unit + bias
    return unit if torch.is_autocast_enabled(input.device.type) else unit.to(input.dtype)


_SECOND = {"_weight_norm": _weight_norm}
_THIRD = {
    "layer_norm": _layer_norm,
    "batch_norm": _with_own_statistics(torch.batch_norm, over_batch=True),
    "instance_norm": _with_own_statistics(torch.instance_norm, over_batch=False),
}
