"""Gradients of the eigenvalues at a measurement: the exact local Hessian-Lipschitz parameters.

Costs 2.4 to 4.5 Hessian-vector products a pair, three times that for the first one, which is
tested; and 2kn numbers, half of them until the optimizer's next step.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.curvature import (
    CurvatureGradients,
    HessianOperator,
    LossHessian,
    ParameterView,
    Partition,
    ProbeLoss,
)
from lipprof.lipschitz import ExactLipschitz, exact_lipschitz
from lipprof.profiler.estimates.pairs import SeenPairs
from lipprof.record import EXACT


class ExactObserver:
    """Differentiates the eigenvalues of converged pairs.

    Args:
        view: the parameters.
        partition: their units.
        loss: the closure; None: the step is replayed.
    """

    def __init__(self, view: ParameterView, partition: Partition, loss: ProbeLoss | None) -> None:
        self._numel = partition.numel
        self._gradients_of = CurvatureGradients(view, loss)
        self._gradients: Float[Tensor, "k n"] | None = None  # of the converged pairs

    def observe(
        self, seen: SeenPairs, operator: LossHessian
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Take in the pairs of a measurement; to be called as an engine is.

        Args:
            seen: the pairs.
            operator: the Hessian at the same parameters.

        Returns:
            Numbers of the pairs, (k, ...), and fields of the measurement.

        Raises:
            ThirdDerivativeError: the loss has no third derivative that can be trusted.
        """  # noqa: DOC502 - raised by the gradients
        self._gradients = None
        if not seen.converged.any():
            return {}, {}
        graphs = operator if isinstance(operator, HessianOperator) else None
        self._gradients = self._gradients_of(seen.vectors[seen.converged], graphs)
        found = self._reduced(seen, self._gradients)
        test = self._gradients_of.test
        numbers = {
            "lipschitz_exact": found.lipschitz,
            "lipschitz_along": found.along_eigenspace,
            "lipschitz_mass": found.tensor_share,
        }
        fields = {
            "exact_method": EXACT.index(self._gradients_of.method),
            "exact_error": math.nan if test is None else test.error,
            "num_matvecs": len(self._gradients),
        }
        return {name: _among(seen, x) for name, x in numbers.items()}, fields

    def observe_step(self, seen: SeenPairs, step: Float[Tensor, " n"]) -> dict[str, Tensor]:
        """Say how fast the eigenvalues changed along the optimizer's step.

        Args:
            seen: the pairs of the newest measurement.
            step: Δθ.

        Returns:
            Numbers of the pairs, (k,).
        """
        gradients, self._gradients = self._gradients, None
        if gradients is None or not step.any():
            return {}
        return {"lipschitz_step": _among(seen, self._reduced(seen, gradients, step).along_step)}

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly."""
        return self._gradients_of.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._gradients_of.load_state_dict(state)

    def _reduced(
        self,
        seen: SeenPairs,
        gradients: Float[Tensor, "k n"],
        step: Float[Tensor, " n"] | None = None,
    ) -> ExactLipschitz:
        known = seen.converged
        return exact_lipschitz(
            gradients,
            seen.vectors[known],
            seen.values[known],
            residuals=seen.residuals[known],
            numel=self._numel,
            displacement=step,
        )


def _among(seen: SeenPairs, numbers: Tensor) -> Tensor:
    """Give the converged pairs' numbers their places among all pairs."""
    every = numbers.new_full((len(seen.converged), *numbers.shape[1:]), torch.nan)
    every[seen.converged] = numbers
    return every
