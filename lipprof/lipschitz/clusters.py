"""Which eigenvalues cannot be told apart: those whose residual bands overlap, chained.

Each band λᵢ ± rᵢ holds an eigenvalue of the matrix.  Where bands overlap, the single vectors are an
arbitrary basis of their eigenspace, and neither a vector nor the change of its eigenvalue means
anything by itself; the space and the mean of its eigenvalues do.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def clusters(values: Float[Tensor, " k"], residuals: Float[Tensor, " k"]) -> Int[Tensor, " k"]:
    """Group eigenvalues by overlapping residual bands.

    Args:
        values: λᵢ, in any order; NaN, a missing pair, stands alone.
        residuals: rᵢ = ‖H vᵢ − λᵢ vᵢ‖.

    Returns:
        Labels 0, 1, … by first appearance, on the CPU: rising for values in falling order.
    """
    lower, upper = (values - residuals).tolist(), (values + residuals).tolist()
    group = list(range(len(lower)))
    reach, current = float("nan"), -1
    for i in sorted(range(len(upper)), key=lambda i: _falling(upper[i])):
        if not upper[i] >= reach:
            reach, current = lower[i], i
        reach = min(reach, lower[i])
        group[i] = current
    numbers: dict[int, int] = {}
    return torch.tensor([numbers.setdefault(g, len(numbers)) for g in group], dtype=torch.int64)


def _falling(value: float) -> float:
    """Sort key: from the largest down, NaN last."""
    return float("inf") if value != value else -value
