"""L of every tensor, from successive estimates of the Hessian's diagonal; and how much is noise.

Three ways to make one number of a tensor's entries h_j:
* ``trace``: the tensor is the unit (the paper's footnote 2), its curvature λ = mean h = tr(block)
  / numel, and L is the drift of that λ, the very one that eq. 8 compares it with.
* ``mean``: every entry is a unit with its own drift, and L is their mean (Fig. 1).
* ``max``: the same, their maximum (App. K).

Hutchinson's noise in single entries is large.  On a small GPT with 8 probes (and the same probes at
both measurements) noise made up 95 to 100 % of the mean squared drift of the entries of hidden
matrices, so ``mean`` came out 6 to 30 times too high; with ``trace`` it was 2 to 60 %.  So both
numbers are given: Alg. 2 as it stands, on average an upper bound of L, and the same without the
share of noise, L √(1 − noise), which is low by up to a fifth (√(2/π): the mean size of noise
is less than its root mean square).  The share is estimated without bias: for ``trace`` from the
spread over probes, otherwise from the product of two independent halves of the estimate,
E[Δh_A Δh_B] = (Δh)².  Minibatch noise, if the two measurements are on different batches, stays in.

With ``denoise=False`` both are Alg. 2 as it stands, and the standard error of λ is not given.

Memory: T · probes numbers for ``trace``, 2n for ``mean``, 4n for ``max``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.linalg import DiagonalEstimate, standard_error
from lipprof.lipschitz.aggregate import per_tensor
from lipprof.lipschitz.drift import DriftEstimator

Aggregate = Literal["trace", "mean", "max"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorCurvature:
    """Curvature and its drift per tensor; float64, on the CPU.  NaN: not known."""

    curvature: Float[Tensor, " T"]  # λ; loss/param²
    curvature_stderr: Float[Tensor, " T"]
    lipschitz: Float[Tensor, " T"]  # L without the share of noise; loss/param³
    lipschitz_upper: Float[Tensor, " T"]  # Alg. 2 as it stands


class TensorDrift:
    """Follows the diagonal through training.  ``options`` are those of ``DriftEstimator``."""

    def __init__(
        self, numel: Sequence[int], *, aggregate: Aggregate, denoise: bool = True, **options: Any
    ) -> None:
        self.numel = list(numel)
        self.aggregate: Aggregate = aggregate
        self.denoise = denoise
        self._drift = DriftEstimator(**options)
        self._powers: Tensor | None = None  # averages of squared drift and of its noise, (2, T)
        self._last: Tensor | None = None

    def update(self, estimate: DiagonalEstimate, distance: float) -> TensorCurvature:
        """Take in a measurement.

        Args:
            estimate: with one part per tensor.
            distance: ‖θ_t − θ_{t−1}‖ since the measurement before; param.

        Returns:
            What is known now.
        """
        means = estimate.part_traces / torch.tensor(self.numel).to(estimate.part_traces)
        now = means if self.aggregate == "trace" else estimate.halves
        if self._last is not None:
            common = min(len(now), len(self._last))  # the same probes come first
            change = now[:common] - self._last[:common].to(now)
            self._take_change(change, estimate, distance)
        self._last = now
        curvature, stderr = means.mean(0), standard_error(means)
        if self.aggregate == "max":
            curvature = per_tensor(estimate.diagonal, self.numel, "max")
        if self.aggregate == "max" or not self.denoise:
            stderr = torch.full_like(curvature, torch.nan)
        lipschitz, upper = self._lipschitz(torch.full_like(curvature, torch.nan))
        return TensorCurvature(
            curvature=curvature.cpu(),
            curvature_stderr=stderr.cpu(),
            lipschitz=lipschitz.cpu(),
            lipschitz_upper=upper.cpu(),
        )

    @property
    def last_distance_ratio(self) -> float:
        """The newest distance over the median: a collapse of training shows here."""
        return self._drift.last_distance_ratio

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly; see the module for its size."""
        return {
            "drift": self._drift.state_dict(),
            "powers": self._powers,
            "last": self._last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned for the same ``aggregate``, from whatever device."""
        self._drift.load_state_dict(state["drift"])
        self._powers, self._last = state["powers"], state["last"]

    def _take_change(self, change: Tensor, estimate: DiagonalEstimate, distance: float) -> None:
        if self.aggregate == "trace":
            drift = change.mean(0)
            power, noise = drift.square(), standard_error(change).square()
        else:
            odd_share = (estimate.num_matvecs // 2) / estimate.num_matvecs
            drift = torch.lerp(change[0], change[1], odd_share)
            power = per_tensor(drift.square(), self.numel, "mean")
            common = per_tensor(change[0] * change[1], self.numel, "mean")
            noise = power - common if odd_share else torch.full_like(power, torch.nan)
            if self.aggregate == "mean":
                drift = per_tensor(drift.abs(), self.numel, "mean")
        self._drift.update(drift, distance)
        if not distance > 0:
            return
        powers = torch.stack([power, noise]) / distance**2
        before = torch.zeros_like(powers) if self._powers is None else self._powers.to(powers)
        self._powers = before.lerp(powers, 1 - self._drift.alpha)

    def _lipschitz(self, unknown: Tensor) -> tuple[Tensor, Tensor]:
        """L without noise and L as it stands."""
        upper = self._drift.lipschitz()
        if upper is None or self._powers is None:
            return unknown, unknown
        if self.aggregate == "max":
            upper = per_tensor(upper, self.numel, "max")
        if not self.denoise:
            return upper, upper
        power, noise = self._powers
        share = torch.where(power > 0, noise / power, 0.0).clamp(0, 1)
        return upper * (1 - share).sqrt(), upper
