"""The drift estimator of Hessian-Lipschitz parameters (Alg. 2, line 5).

At consecutive measurements, with the distance d = ‖θ_t − θ_{t−1}‖₂,

    Lᵢ ← α Lᵢ + (1 − α) |λᵢᵗ − λᵢᵗ⁻¹| / (ε + d),        Lᵢ = 0 at the start.

Departs from the paper in two ways, both switchable:
1. The zero start biases L low by 1 − αᵗ; it is divided out, as Adam does.
2. A distance below ``distance_floor`` times the median of the last ``MEDIAN_WINDOW`` counts as
   that much, and is left out of later medians.  This is a safeguard for live switching, off by
   default: it biases L low when training slows down for good reasons.  Without it, tensors that
   hardly move get an L that rises by decades, are sent to the first-order side for it, move still
   less, and stay there for good (measured: AMOS collapses to 100 % first-order).
"""

import statistics
from collections import deque

import torch
from jaxtyping import Float, Int
from torch import Tensor

MEDIAN_WINDOW = 101
"""Distances that the median is taken of: a bounded cost, and a scale that follows a schedule of the
learning rate, which an ever longer history would leave behind until every distance is under it.
Half of them must shrink before the floor does, so a collapse within fifty measurements is held."""


class DriftEstimator:
    """Moving average of |change| / distance for k eigenvalues (of pairs, or one per parameter)."""

    def __init__(
        self,
        *,
        alpha: float = 0.9,
        epsilon: float = 1e-12,
        bias_correction: bool = True,
        distance_floor: float = 0.0,
    ) -> None:
        self.alpha = alpha
        self.epsilon = epsilon
        self.bias_correction = bias_correction
        self.distance_floor = distance_floor
        self._average: Tensor | None = None
        self._weight: Tensor | None = None  # 1 − αᵗ, per entry, as pairs come and go
        self._distances: deque[float] = deque(maxlen=MEDIAN_WINDOW)
        self.last_distance_ratio = float("nan")
        """The newest distance over the median: a collapse of training shows here.

        The median is of the kept distances and the newest one, whether or not that one is kept, so
        that the first has a scale, itself."""

    def update(self, change: Float[Tensor, " k"], distance: float) -> None:
        """Take in one pair of measurements.

        Args:
            change: λᵢᵗ − λᵢᵗ⁻¹; NaN where there is none.  Unit: loss/param².
            distance: ‖θ_t − θ_{t−1}‖₂.  Unit: param.  Zero says nothing of L and is ignored.
        """
        if distance == 0:
            self.last_distance_ratio = 0.0
        if not distance > 0:
            return
        typical = statistics.median([*self._distances, distance])
        floor = self.distance_floor * typical
        if distance >= floor:
            self._distances.append(distance)
        self.last_distance_ratio = distance / typical
        sample = change.abs() / (self.epsilon + max(distance, floor))
        known = sample.isfinite()
        average = torch.zeros_like(sample) if self._average is None else self._average.to(sample)
        weight = torch.zeros_like(sample) if self._weight is None else self._weight.to(sample)
        self._average = torch.where(known, average.lerp(sample, 1 - self.alpha), average)
        self._weight = torch.where(
            known, weight.lerp(torch.ones_like(weight), 1 - self.alpha), weight
        )

    def follow(self, source: Int[Tensor, " k"]) -> None:
        """Reorder the averages after a matching: entry i continues entry ``source[i]``.

        Args:
            source: indices into the present entries; −1 starts anew.
        """
        if self._average is None or self._weight is None:
            return
        index = source.to(self._average.device)
        self._average = torch.where(index >= 0, self._average[index.clamp(min=0)], 0.0)
        self._weight = torch.where(index >= 0, self._weight[index.clamp(min=0)], 0.0)

    def lipschitz(self) -> Float[Tensor, " k"] | None:
        """Estimate L of every entry.

        Returns:
            L, loss/param³, NaN for entries without a predecessor yet; None before the first update.
        """
        if self._average is None or self._weight is None:
            return None
        scale = self._weight if self.bias_correction else torch.ones_like(self._weight)
        return torch.where(self._weight > 0, self._average / scale, torch.nan)

    def state_dict(self) -> dict[str, object]:
        """Return what ``load_state_dict`` needs to go on exactly."""
        return {
            "average": self._average,
            "weight": self._weight,
            "distances": list(self._distances),
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore what ``state_dict`` returned, from whatever device."""
        self._average = state["average"]  # pyright: ignore[reportAttributeAccessIssue]
        self._weight = state["weight"]  # pyright: ignore[reportAttributeAccessIssue]
        self._distances = deque(state["distances"], MEDIAN_WINDOW)  # pyright: ignore
