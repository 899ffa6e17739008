"""L of the eigenpairs by every estimator asked for, and what rests on the one that serves.

Drift (Alg. 2) is always followed: it costs nothing.  An estimator that fails leaves its numbers
open and the measurement whole.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lipprof.curvature import LossHessian, ParameterView, Partition, ProbeLoss
from lipprof.errors import ConfigError
from lipprof.linalg.inner import project
from lipprof.lipschitz import (
    concave_share,
    elmo_step,
    guaranteed_descent,
    newton_threshold,
    regret,
    step_deviation,
)
from lipprof.profiler.estimates.attempts import Attempts
from lipprof.profiler.estimates.drift import PairAverage
from lipprof.profiler.estimates.exact import ExactObserver
from lipprof.profiler.estimates.noise import BatchNoise
from lipprof.profiler.estimates.pairs import SeenPairs
from lipprof.profiler.estimates.trials import LossTrials
from lipprof.record import LIPSCHITZ
from lipprof.settings import Settings

Found = tuple[dict[str, Tensor], dict[str, Any]]
"""Numbers of the pairs, (k, ...), and fields of the measurement."""


class LipschitzObserver:
    """Follows L through a run.

    Args:
        settings: of the run.
        view: the parameters.
        partition: their units.
        loss: what can be evaluated at other parameters; None: the step's own loss cannot.
        noise: further batches, if any.

    Raises:
        ConfigError: an estimator needs a closure, and there is none.
    """

    def __init__(
        self,
        settings: Settings,
        view: ParameterView,
        partition: Partition,
        loss: ProbeLoss | None,
        noise: BatchNoise | None,
    ) -> None:
        trials = ["eigenarc"] if "eigenarc" in settings.lipschitz else []
        trials += ["superiority"] if settings.superiority else []
        if trials and loss is None:
            raise ConfigError(
                f"{' and '.join(trials)}: the loss must be evaluated at other parameters, which a "
                "training step's own cannot be. Pass loss= (a closure over a probe batch)."
            )
        self._drift = PairAverage(settings)
        self._noise = noise
        self._exact = ExactObserver(view, partition, loss) if settings.exact else None
        self._trials = LossTrials(settings, loss, view) if loss and trials else None
        self._serving = LIPSCHITZ[settings.lipschitz[0]]
        self._model: dict[str, Float[Tensor, " k"]] = {}
        self._attempts = Attempts(strict=settings.strict)

    def observe(
        self, seen: SeenPairs, operator: LossHessian, distance: float, learning_rate: float
    ) -> dict[str, Any]:
        """Take in the pairs of a measurement.

        Args:
            seen: the pairs.
            operator: the Hessian at the same parameters.
            distance: ‖θ_t − θ_{t−1}‖ since the measurement before; param.
            learning_rate: of the optimizer.

        Returns:
            Fields of the measurement; ``num_matvecs`` counts the products paid for here.
        """
        numbers = {"lipschitz_drift": self._drift.updated(seen, seen.change, distance)}
        fields: dict[str, Any] = {"num_matvecs": 0, "reason": ""}
        if (noise := self._noise) is not None:
            self._attempt("noise", lambda: noise.observe(seen, distance), numbers, fields)
        if (exact := self._exact) is not None:
            self._attempt("exact", lambda: exact.observe(seen, operator), numbers, fields)
        if (trials := self._trials) is not None:
            self._attempt("trials", lambda: trials.observe(seen, learning_rate), numbers, fields)
        model = {"slope": seen.slope, "curvature": seen.values}
        unknown = numbers["lipschitz_drift"] * float("nan")
        self._model = model | {"lipschitz": numbers.get(self._serving, unknown)}
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
        numbers = {
            "step_projection": along,
            "step_deviation": step_deviation(along, **self._model)[1],
            "regret": regret(along, **self._model),
        }
        if self._exact is not None:
            numbers |= self._exact.observe_step(seen, step)
        return seen.fields(numbers)

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly; None for what is not in use."""
        return {name: part and part.state_dict() for name, part in self._followed.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; an estimator that was not in use starts anew."""
        for name, part in self._followed.items():
            if part is not None and state[name] is not None:
                part.load_state_dict(state[name])

    @property
    def _followed(self) -> dict[str, PairAverage | BatchNoise | ExactObserver | LossTrials | None]:
        return {
            "drift": self._drift,
            "noise": self._noise,
            "exact": self._exact,
            "trials": self._trials,
        }

    @property
    def serving(self) -> Float[Tensor, " k"]:
        """L of the newest pairs by the estimator that serves; NaN: unknown."""
        return self._model["lipschitz"]

    def _attempt(
        self,
        name: str,
        observe: Callable[[], Found],
        numbers: dict[str, Tensor],
        fields: dict[str, Any],
    ) -> None:
        """Add what an estimator finds."""
        result = self._attempts.attempt(name, observe, fields)
        if result is None:
            return
        found, about = result
        numbers |= found
        about["num_matvecs"] = fields["num_matvecs"] + about.get("num_matvecs", 0)
        fields |= about


def _with_descent(model: dict[str, Float[Tensor, " k"]]) -> dict[str, Float[Tensor, " k"]]:
    """Leave out the pairs whose guaranteed descent is unknown or without bound."""
    known = guaranteed_descent(**model).isfinite()
    return {name: x[known] for name, x in model.items()}
