"""What the loss does along the eigenpairs: trials of EigenARC, Newton and gradient descent.

Needs a loss that can be evaluated at other parameters: a closure.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.advice import trial_steps
from lipprof.curvature import DisplacedLoss, ParameterView, ProbeLoss
from lipprof.lipschitz import EigenARC, EigenArcResult
from lipprof.profiler.estimates.pairs import SeenPairs
from lipprof.record import EIGENARC
from lipprof.settings import Settings


class LossTrials:
    """Evaluates the loss at steps along the pairs, measurement after measurement.

    Args:
        settings: of the run.
        loss: the closure.
        view: the parameters.
    """

    def __init__(self, settings: Settings, loss: ProbeLoss, view: ParameterView) -> None:
        self._arc = EigenARC() if "eigenarc" in settings.lipschitz else None
        self._superiority = settings.superiority
        self._displaced = DisplacedLoss(loss, view)

    def observe(
        self, seen: SeenPairs, learning_rate: float
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Try the steps that the settings ask for.

        Args:
            seen: the pairs of the newest measurement.
            learning_rate: of gradient descent.

        Returns:
            Numbers of the pairs, (k,), and of the measurement.
        """
        before = self._displaced.num_evaluations
        loss = self._displaced(torch.zeros_like(seen.vectors[0]))
        numbers: dict[str, Tensor] = {}
        fields: dict[str, Any] = {}
        if self._arc is not None:
            found = self._eigenarc(self._arc, seen, loss)
            lipschitz = torch.where(found.tested, found.lipschitz, torch.nan)
            numbers["lipschitz_eigenarc"] = lipschitz[seen.places]
            fields["eigenarc_ratio"] = found.ratio
            codes = [EIGENARC.index(outcome.name.lower()) for outcome in found.outcomes]
            fields["eigenarc_outcome"] = np.array(codes, np.int8)
        if self._superiority:
            numbers |= self._descents(seen, loss, learning_rate)
        fields["num_losses"] = self._displaced.num_evaluations - before
        return numbers, fields

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly."""
        return {} if self._arc is None else self._arc.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; without EigenARC there is nothing."""
        if self._arc is not None and state:
            self._arc.load_state_dict(state)

    def _eigenarc(self, arc: EigenARC, seen: SeenPairs, loss: float) -> EigenArcResult:
        def along(steps: Float[Tensor, " P"]) -> float:
            return self._at(seen, steps[seen.places])

        arc.follow(seen.source)
        model = {name: seen.placed(x) for name, x in seen.certain.items()}
        return arc.update(along, loss=loss, rounding=self._displaced.view.rounding, **model)

    def _descents(self, seen: SeenPairs, loss: float, learning_rate: float) -> dict[str, Tensor]:
        """How far the loss falls along each pair alone, by Newton's step and by SGD's."""
        newton, gradient = trial_steps(seen.slope.numpy(), seen.values.numpy(), lr=learning_rate)
        return {
            "newton_descent": self._descent(seen, loss, torch.from_numpy(newton)),
            "gradient_descent": self._descent(seen, loss, torch.from_numpy(gradient)),
        }

    def _descent(
        self, seen: SeenPairs, loss: float, steps: Float[Tensor, " k"]
    ) -> Float[Tensor, " k"]:
        return torch.tensor([loss - self._at(seen, row) for row in torch.diag(steps)])

    def _at(self, seen: SeenPairs, steps: Float[Tensor, " k"]) -> float:
        return self._displaced(steps.to(seen.vectors) @ seen.vectors)
