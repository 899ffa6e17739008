"""L of the eigenpairs by every estimator asked for, and what rests on the one that serves.

Drift (Alg. 2) is always followed: it costs nothing.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.linalg.inner import project
from lipprof.lipschitz import DriftEstimator, elmo_step, newton_threshold, regret
from lipprof.profiler.pairs import SeenPairs
from lipprof.record import LIPSCHITZ
from lipprof.settings import Settings


class LipschitzObserver:
    """Follows L through a run.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: Settings) -> None:
        self.serving = LIPSCHITZ[settings.lipschitz[0]]
        self._drift = DriftEstimator(
            alpha=settings.alpha,
            epsilon=settings.epsilon,
            bias_correction=settings.bias_correction,
        )
        self._model: dict[str, Float[Tensor, " k"]] = {}

    def observe(self, seen: SeenPairs, distance: float) -> dict[str, Any]:
        """Take in the pairs of a measurement.

        Args:
            seen: the pairs.
            distance: ‖θ_t − θ_{t−1}‖ since the measurement before; param.

        Returns:
            Fields of the measurement.
        """
        numbers = {"lipschitz_drift": self._follow_drift(seen, distance)}
        model = {"slope": seen.slope, "curvature": seen.values}
        self._model = model | {"lipschitz": numbers[self.serving]}
        numbers["elmo_step"] = elmo_step(**self._model)
        numbers["newton_threshold"] = newton_threshold(**model)
        return seen.fields(numbers)

    def observe_step(self, seen: SeenPairs, step: Float[Tensor, " n"]) -> dict[str, Any]:
        """Say what the optimizer's step did in each eigenspace.

        Args:
            seen: the pairs of the newest measurement.
            step: Δθ.

        Returns:
            Fields of the measurement.
        """
        along = project(seen.vectors, step).cpu()
        return seen.fields({"step_projection": along, "regret": regret(along, **self._model)})

    def _follow_drift(self, seen: SeenPairs, distance: float) -> Float[Tensor, " k"]:
        self._drift.follow(seen.source)
        self._drift.update(seen.placed(seen.change), distance)
        lipschitz = self._drift.lipschitz()
        return (
            torch.full_like(seen.values, torch.nan) if lipschitz is None else lipschitz[seen.places]
        )
