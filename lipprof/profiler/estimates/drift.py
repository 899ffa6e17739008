"""Moving averages per eigenpair that follow the pairs from place to place."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.lipschitz import DriftEstimator
from lipprof.profiler.estimates.pairs import SeenPairs
from lipprof.settings import Settings


class PairAverage:
    """Averages |change| / distance over measurements (Alg. 2, line 5), pair by pair.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: Settings) -> None:
        self._drift = DriftEstimator(
            alpha=settings.alpha,
            epsilon=settings.epsilon,
            bias_correction=settings.bias_correction,
        )

    def updated(
        self, seen: SeenPairs, change: Float[Tensor, " k"], distance: float
    ) -> Float[Tensor, " k"]:
        """Take in a measurement.

        Args:
            seen: its pairs, which continue those before.
            change: of the pairs; NaN: unknown.
            distance: ‖θ_t − θ_{t−1}‖ since the measurement before; param.

        Returns:
            The averages; NaN for a pair without a known change so far.
        """
        self._drift.follow(seen.source)
        self._drift.update(seen.placed(change), distance)
        known = self._drift.lipschitz()
        return torch.full_like(change, torch.nan) if known is None else known[seen.places]

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly."""
        return self._drift.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._drift.load_state_dict(state)
