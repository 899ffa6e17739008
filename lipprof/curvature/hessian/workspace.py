"""What convolutions on a CPU take and give back within themselves: oneDNN's blocked copies.

oneDNN reads and writes activations whose channels are padded to whole vector registers, so that six
channels take the memory of eight (AVX2) or sixteen (AVX-512).  torch copies what goes in and what
comes out, one copy after the other:

    forward     x, w and y blocked; then y blocked beside y
    backward    g, w and ∂x blocked; then ∂x blocked beside ∂x; then, beside ∂x, first g, x and ∂w
                blocked, and last ∂w both ways

An x of a few channels is read as it is, or in blocks of eight.  Measured with torch 2.13 over ten
shapes and both widths: the most of these is within a tenth of what was allocated, but for grouped
convolutions, which take less.
"""

from typing import Any

import torch
from torch import Tensor

NARROW = 8  # channels: the smaller block, and the most that forward reads as they are
PLAIN = 3  # and backward


def workspace_bytes(func: Any, args: tuple[Any, ...], result: Any) -> int:
    """Bytes that an operator takes beyond its results, and has released when it returns.

    Args:
        func: the operator.
        args: of the call.
        result: of the call.

    Returns:
        Nothing for other operators and other devices, whose workspaces are not known.
    """
    if func is torch.ops.aten.convolution.default and _through_onednn(args[0]):
        x, w, y = args[0], args[1], result
        held = _nbytes(y)
        transposed = args[6]  # is backward by x, from forward's point of view
        copied = _blocked(x) if transposed or x.shape[1] > NARROW else 0
        phases = [copied + _blocked(w) + _blocked(y), _blocked(y) + _nbytes(y)]
    elif func is torch.ops.aten.convolution_backward.default and _through_onednn(args[1]):
        g, x, w, (dx, dw, _) = *args[:3], result
        held = _nbytes(dx) + _nbytes(dw)
        phases = []
        if dx is not None:
            phases += [_blocked(g) + _blocked(w) + _blocked(x), _blocked(x) + _nbytes(x)]
        if dw is not None:
            copied = _blocked(x, narrow=True) if x.shape[1] > PLAIN else 0
            before = _nbytes(dx) + _blocked(w)
            phases += [before + _blocked(g) + copied, before + _nbytes(dw)]
    else:
        return 0
    return max(0, *phases, held) - held


def _through_onednn(x: Tensor) -> bool:
    return (
        x.is_cpu
        and x.dtype is torch.float32
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def _blocked(tensor: Tensor, *, narrow: bool = False) -> int:
    """Bytes with whole blocks of channels, axis 1; kernels have them on both axes."""
    channels = tensor.shape[1]
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    block = NARROW if not wide or (narrow and channels <= NARROW) else 2 * NARROW
    return _nbytes(tensor) // channels * block * -(-channels // block)


def _nbytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
