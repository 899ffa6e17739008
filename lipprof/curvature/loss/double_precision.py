"""A closure in float64, whatever precision its model and data have.

The model is called with float64 parameters and buffers (``FunctionalLoss``), and a mode widens what
else meets them: tensors that the closure captured, constants, casts to a narrower dtype.  Random
numbers are drawn as they would be without it and widened then, so that dropout keeps its masks.
Autocast leaves float64 alone.  What computes outside of torch's Python interface (an extension, a
custom kernel) may fail; C++ that draws random numbers by itself may draw others.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)
_DRAWS = (
    torch.rand,
    torch.randn,
    torch.normal,
    torch.rand_like,
    torch.randn_like,
    torch.bernoulli,
    Tensor.bernoulli,
)
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout)


class DoublePrecision(TorchFunctionMode):
    """Context in which torch's functions compute in float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Widen what goes in, and what comes out."""
        if func in _CASTS:
            func = Tensor.double
        if func in _DROPOUTS:
            return _dropped(func, args, kwargs or {})
        convert = _narrowed if func in _DRAWS else _widened
        args, kwargs = pytree.tree_map(convert, (args, kwargs or {}))
        return pytree.tree_map_only(Tensor, _widened, func(*args, **kwargs))


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.dtype in _NARROW else value
    narrow = isinstance(value, torch.dtype) and value in _NARROW
    return torch.float64 if narrow else value


def _narrowed(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype is torch.float64 else value


def _dropped(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Apply dropout by a mask that is drawn in float32."""
    given = dict(kwargs)
    values = _widened(given.pop("input") if "input" in given else args[0])
    mask = func(torch.ones_like(values, dtype=torch.float32), *args[1:], **given)
    return values * mask.double()
