"""From one number per parameter to one per tensor: the mean (Fig. 1) or the maximum (App. K)."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def per_tensor(
    flat: Float[Tensor, " n"], numel: Sequence[int], how: Literal["mean", "max"]
) -> Float[Tensor, " T"]:
    """Aggregate a flat vector over its tensors.

    Args:
        flat: one number per parameter, in flat order.
        numel: length of each tensor; they add up to n.
        how: mean or maximum.

    Returns:
        Float64 on the device of ``flat``; no host synchronisation.
    """
    reduce = torch.mean if how == "mean" else torch.amax
    return torch.stack([reduce(part.double()) for part in flat.split(list(numel))])
