"""What the loss does along the next step of either optimizer of AMOS, and along the one it takes.

d is the step of the whole model with all that may switch on one side (``lipprof.optim.rehearsal``).
Of unit u is recorded its share of the change along d, so that shares add up to the whole's:

    slope_u     = −g_u·d_u
    curvature_u = d_u·(Hd)_u                           terms between two units count half in either
    bend_u      = 2 d_u·(g(θ + d) − g(θ) − Hd)_u       third derivative along d, if that is constant
    descent_u   = −slope_u + curvature_u/2 + bend_u/6  the change of the loss; minus: it falls

What may not leave the first side has no second step (NaN), though d moves it as the first does.
g and H are those of the probe, d is the optimizer's own, made of the gradients of its minibatches.

Cost: for either optimizer a Hessian-vector product and a gradient of the probe; for the step taken,
two evaluations of its loss.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from lipprof.advice import rule_of
from lipprof.curvature import (
    DisplacedLoss,
    LossHessian,
    ParameterView,
    Partition,
    ProbeLoss,
    undisturbed,
)
from lipprof.errors import ConfigError, NonfiniteError
from lipprof.linalg.inner import dot
from lipprof.optim import AMOS
from lipprof.optim.assignment import movable_sizes
from lipprof.optim.rehearsal import rehearse
from lipprof.profiler.estimates.attempts import Attempts
from lipprof.settings import Settings

PRODUCTS = 2  # with the Hessian, a measurement
SIDES = ("first", "second")


def wants_candidates(settings: Settings) -> bool:
    """Tell whether a run measures both next steps: it is asked to, or its rule needs them."""
    return settings.descents or rule_of(settings.rule, settings.threshold).needs_candidates


class CandidateObserver:
    """Measures both next steps at scheduled iterations, and the step that was taken.

    Args:
        settings: of the run.
        optimizer: an AMOS.
        view: the parameters.
        partition: their units.
        loss: of the probe.

    Raises:
        ConfigError: the optimizer is no AMOS, there is no closure, or step lengths are calibrated.
    """

    def __init__(
        self,
        settings: Settings,
        optimizer: Optimizer,
        view: ParameterView,
        partition: Partition,
        loss: ProbeLoss | None,
    ) -> None:
        asked = "descents=True" if settings.descents else f"rule={settings.rule!r}"
        if not isinstance(optimizer, AMOS):
            raise ConfigError(
                f"{asked} compares the next steps of AMOS's two optimizers, and the optimizer is "
                f"a {type(optimizer).__name__}. Attach to a lipprof.AMOS, or leave it out."
            )
        if loss is None:
            raise ConfigError(
                f"{asked}: the loss must be evaluated at other parameters, which a training step's "
                "own cannot be. Pass loss= (a closure over a probe batch)."
            )
        if settings.calibrate:
            raise ConfigError(
                f"{asked} foresees steps by the optimizers' own learning rates, which calibrate="
                "True changes. Calibrate in a run of its own first."
            )
        self._amos, self._view = optimizer, view
        self._names, self._numel = partition.names, partition.numel
        self._training = settings.mode == "train"
        self._attempts = Attempts(strict=settings.strict)
        self._displaced = DisplacedLoss(loss, view)
        self._before: float | None = None  # loss at the newest measurement

    def observe(
        self, operator: LossHessian, gradient: Float[Tensor, " n"], fields: dict[str, Any]
    ) -> dict[str, Any]:
        """Measure both next steps; to be called when the step's gradients are there.

        Args:
            operator: the Hessian at the present parameters.
            gradient: of the same loss.
            fields: of the measurement; ``reason`` takes in a failure.

        Returns:
            Further fields of the measurement; none where it failed.
        """

        def measured() -> dict[str, Any]:
            return self._observe(operator, gradient)

        return self._attempts.attempt("descents", measured, fields) or {}

    @property
    def observed(self) -> bool:
        """Whether the newest measurement has both next steps."""
        return self._before is not None

    def achieved(self) -> float:
        """Change of the probe's loss since ``observe``, for one evaluation.

        Returns:
            The change; NaN where ``observe`` failed.
        """
        if self._before is None:
            return np.nan
        with undisturbed(self._displaced.loss.model, training=self._training):
            return self._displaced.loss.value() - self._before

    def _observe(self, operator: LossHessian, gradient: Float[Tensor, " n"]) -> dict[str, Any]:
        self._before = None
        if all(parameter.grad is None for parameter in self._view.parameters):
            raise ConfigError(
                "no parameter has a gradient when the optimizer is about to step. Call backward() "
                "before step(), or pass the closure to step()."
            )
        fields: dict[str, Any] = {"num_matvecs": PRODUCTS, "num_losses": 1}
        for side, updates in zip(SIDES, rehearse(self._amos), strict=True):
            step = self._view.flatten([updates[p] for p in self._view.parameters])
            numbers = self._along(step, operator, gradient)
            fields |= {f"{side}_{name}": values for name, values in numbers.items()}
        movable, _ = movable_sizes(self._amos._assignment.units)
        staying = ~np.isin(self._names, movable)
        for name in ("second_slope", "second_curvature", "second_descent"):
            fields[name][staying] = np.nan
        self._before = self._displaced.loss.value()
        return fields

    def _along(
        self, step: Float[Tensor, " n"], operator: LossHessian, gradient: Float[Tensor, " n"]
    ) -> dict[str, NDArray[np.float64]]:
        slope = -self._shares(step, gradient)
        try:
            product = operator.matvec(step)
            change = self._displaced.gradient(step) - gradient
        except NonfiniteError:  # so far does this step go
            curvature = descent = np.full_like(slope, np.inf)
        else:
            curvature = self._shares(step, product)
            bend = 2 * self._shares(step, change.sub_(product))
            with np.errstate(invalid="ignore"):
                descent = -slope + curvature / 2 + bend / 6
            descent[~np.isfinite(descent)] = np.inf
        return {"slope": slope, "curvature": curvature, "descent": descent}

    def _shares(self, step: Float[Tensor, " n"], other: Float[Tensor, " n"]) -> NDArray[np.float64]:
        parts = zip(step.split(self._numel), other.split(self._numel), strict=True)
        return torch.stack([dot(a, b) for a, b in parts]).cpu().numpy()
