"""Units through training: curvature, its drift and eq. 8's threshold, from Hessian diagonals.

Between measurements this holds what ``lipprof.lipschitz.tensors`` keeps.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.linalg import DiagonalEstimate
from lipprof.lipschitz import TensorDrift, newton_threshold, newton_threshold_range, per_tensor
from lipprof.settings import Settings


class TensorObserver:
    """Follows the tensors of a run.

    Args:
        settings: of the run.
        numel: entries of each unit.
    """

    def __init__(self, settings: Settings, numel: Sequence[int]) -> None:
        self.numel = list(numel)
        self._slope: Literal["mean", "max"] = "max" if settings.aggregate == "max" else "mean"
        self._drift = TensorDrift(
            numel,
            aggregate=settings.aggregate,
            denoise=settings.denoise,
            alpha=settings.alpha,
            epsilon=settings.epsilon,
            bias_correction=settings.bias_correction,
            distance_floor=settings.distance_floor,
        )

    @property
    def last_distance_ratio(self) -> float:
        """The newest distance over the median: a collapse of training shows here."""
        return self._drift.last_distance_ratio

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly."""
        return self._drift.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._drift.load_state_dict(state)

    def observe(
        self,
        estimate: DiagonalEstimate | None,
        gradient: Float[Tensor, " n"],
        distance: float,
    ) -> dict[str, Any]:
        """Take in a measurement.

        Args:
            estimate: of the diagonal, with one part per tensor; None: there is none.
            gradient: at the same parameters.
            distance: ‖θ_t − θ_{t−1}‖ since the measurement before; param.

        Returns:
            Fields of the measurement.
        """
        squares = [part.double().square().sum() for part in gradient.split(self.numel)]
        fields: dict[str, Any] = {"tensor_grad_norm": torch.stack(squares).sqrt().cpu().numpy()}
        if estimate is None:
            return fields
        known = self._drift.update(estimate, distance)
        slope = per_tensor(gradient.abs(), self.numel, self._slope).cpu()
        low, high = newton_threshold_range(
            slope=slope, curvature=known.curvature, stderr=known.curvature_stderr
        )
        numbers = {
            "tensor_curvature": known.curvature,
            "tensor_curvature_stderr": known.curvature_stderr,
            "tensor_lipschitz": known.lipschitz,
            "tensor_lipschitz_upper": known.lipschitz_upper,
            "tensor_slope": slope,
            "tensor_threshold": newton_threshold(slope=slope, curvature=known.curvature),
            "tensor_threshold_low": low,
            "tensor_threshold_high": high,
        }
        trace = {"trace": estimate.trace, "trace_stderr": estimate.trace_stderr}
        return fields | trace | {name: x.numpy() for name, x in numbers.items()}
