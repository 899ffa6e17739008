"""L of the eigenpairs by every estimator asked for, and what rests on the one that serves.

Drift (Alg. 2) is always followed: it costs nothing.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.curvature import ParameterView, ProbeLoss
from lipprof.errors import ConfigError
from lipprof.linalg.inner import project
from lipprof.lipschitz import (
    DriftEstimator,
    concave_share,
    elmo_step,
    guaranteed_descent,
    newton_threshold,
    noise_floor,
    noise_share,
    probe_variance,
    regret,
)
from lipprof.profiler.noise import BatchNoise
from lipprof.profiler.pairs import SeenPairs
from lipprof.profiler.trials import LossTrials
from lipprof.record import LIPSCHITZ
from lipprof.settings import Settings


class LipschitzObserver:
    """Follows L through a run.

    Args:
        settings: of the run.
        view: the parameters.
        loss: what can be evaluated at other parameters; None: the step's own loss cannot.
        noise: further batches, if any.

    Raises:
        ConfigError: an estimator needs a closure, and there is none.
    """

    def __init__(
        self,
        settings: Settings,
        view: ParameterView,
        loss: ProbeLoss | None,
        noise: BatchNoise | None,
    ) -> None:
        needing = [name for name in ("eigenarc",) if name in settings.lipschitz]
        needing += ["superiority"] if settings.superiority else []
        if needing and loss is None:
            raise ConfigError(
                f"{' and '.join(needing)}: the loss must be evaluated at other parameters, which a "
                "training step's own cannot be. Pass loss= (a closure over a probe batch)."
            )
        self._trials = LossTrials(settings, loss, view) if loss and needing else None
        self._noise = noise
        self.serving = LIPSCHITZ[settings.lipschitz[0]]
        average: dict[str, Any] = dict(
            alpha=settings.alpha,
            epsilon=settings.epsilon,
            bias_correction=settings.bias_correction,
        )
        self._drift = DriftEstimator(**average)
        self._squares, self._variances = DriftEstimator(**average), DriftEstimator(**average)
        self._quotients: Float[Tensor, "B P"] | None = None  # of the measurement before
        self._model: dict[str, Float[Tensor, " k"]] = {}

    def observe(self, seen: SeenPairs, distance: float, learning_rate: float) -> dict[str, Any]:
        """Take in the pairs of a measurement.

        Args:
            seen: the pairs.
            distance: ‖θ_t − θ_{t−1}‖ since the measurement before; param.
            learning_rate: of the optimizer.

        Returns:
            Fields of the measurement.
        """
        numbers = {"lipschitz_drift": self._follow_drift(seen, distance)}
        if self._noise is not None:
            numbers |= self._follow_noise(self._noise, seen, distance)
        fields: dict[str, Any] = {}
        if self._trials is not None:
            found, fields = self._trials.observe(seen, learning_rate)
            numbers |= found
        model = {"slope": seen.slope, "curvature": seen.values}
        self._model = model | {"lipschitz": numbers[self.serving]}
        fields["concave_share"] = float(concave_share(**_with_descent(self._model)))
        numbers["elmo_step"] = elmo_step(**self._model)
        numbers["newton_threshold"] = newton_threshold(**model)
        return fields | seen.fields(numbers)

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

    def _follow_noise(
        self, noise: BatchNoise, seen: SeenPairs, distance: float
    ) -> dict[str, Float[Tensor, " k"]]:
        """The noise floor, and the share of batch noise in the averaged square of the drift."""
        quotients = noise.quotients(seen.vectors)
        floor = noise_floor(quotients).deviation / noise.size_ratio**0.5
        before, self._quotients = self._quotients, seen.placed(quotients.T).T
        found = {"noise_floor": floor}
        for average in (self._squares, self._variances):
            average.follow(seen.source)
        if before is None or not distance > 0:
            return found
        source = seen.source[seen.places]
        previous = torch.where(source >= 0, before[:, source.clamp(min=0)], torch.nan)
        variance = probe_variance(quotients, previous, size_ratio=noise.size_ratio)
        known = seen.change.isfinite()
        variance = torch.where(known, variance, torch.nan)
        self._squares.update(seen.placed(seen.change.square() / distance), distance)
        self._variances.update(seen.placed(variance / distance), distance)
        squares, variances = self._squares.lipschitz(), self._variances.lipschitz()
        if squares is not None and variances is not None:
            share = noise_share(squares.sqrt(), variances)
            found["lipschitz_noise"] = share[seen.places]
        return found

    def _follow_drift(self, seen: SeenPairs, distance: float) -> Float[Tensor, " k"]:
        self._drift.follow(seen.source)
        self._drift.update(seen.placed(seen.change), distance)
        lipschitz = self._drift.lipschitz()
        return (
            torch.full_like(seen.values, torch.nan) if lipschitz is None else lipschitz[seen.places]
        )


def _with_descent(model: dict[str, Float[Tensor, " k"]]) -> dict[str, Float[Tensor, " k"]]:
    """Leave out the pairs whose guaranteed descent is unknown or without bound."""
    known = guaranteed_descent(**model).isfinite()
    return {name: x[known] for name, x in model.items()}
