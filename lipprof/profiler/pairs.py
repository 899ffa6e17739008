"""Eigenpairs through training: oriented, followed from one measurement to the next, and their L.

Between measurements this holds the eigenvectors, (top + bottom) · n numbers.  Where a measurement
computes fewer pairs than the run file has places for, ``places`` says which.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipprof.linalg import RitzPairs
from lipprof.linalg.inner import project
from lipprof.lipschitz import DriftEstimator, elmo_step, match_pairs, newton_threshold, regret
from lipprof.settings import Settings


class PairObserver:
    """Follows the eigenpairs of a run and the drift of their eigenvalues.

    Args:
        settings: of the run.
        numel: entries of each profiled tensor.
    """

    def __init__(self, settings: Settings, numel: Sequence[int]) -> None:
        self.numel = list(numel)
        self.axis = settings.top + settings.bottom
        self.drift = DriftEstimator(
            alpha=settings.alpha,
            epsilon=settings.epsilon,
            bias_correction=settings.bias_correction,
        )
        self._pairs: RitzPairs | None = None
        self._places = torch.empty(0, dtype=torch.long)
        self._model: dict[str, Tensor] = {}

    def observe(
        self, pairs: RitzPairs | None, top: int, gradient: Float[Tensor, " n"], distance: float
    ) -> dict[str, Any]:
        """Take in the pairs of a measurement, and orient them by g · v ≤ 0 (eq. 1).

        Args:
            pairs: those that were computed; None: none were.
            top: how many of them are of the top end.
            gradient: at the same parameters.
            distance: ‖θ_t − θ_{t−1}‖ since the measurement before; param.

        Returns:
            Fields of the measurement.
        """
        previous, before = self._pairs, self._places
        self._pairs = pairs
        if pairs is None:
            return {}
        self._places = self._places_of(pairs, top)
        projection = project(pairs.vectors, gradient)
        pairs.vectors.mul_(torch.where(projection > 0, -1, 1).to(pairs.vectors)[:, None])
        slope = projection.abs().cpu()
        overlap = torch.full_like(slope, torch.nan)
        if previous is not None:
            overlap = self._follow(pairs, previous, before, distance)
        drift = self.drift.lipschitz()
        lipschitz = torch.full_like(slope, torch.nan) if drift is None else drift[self._places]
        self._model = {"slope": slope, "curvature": pairs.values, "lipschitz": lipschitz}
        mass = [part.double().square().sum(1) for part in pairs.vectors.split(self.numel, 1)]
        numbers = {
            "eigenvalue": pairs.values,
            "residual": pairs.residuals,
            "overlap": overlap,
            "grad_projection": -slope,
            "lipschitz_drift": lipschitz,
            "elmo_step": elmo_step(**self._model),
            "newton_threshold": newton_threshold(slope=slope, curvature=pairs.values),
            "eigenvector_mass": torch.stack(mass, 1).cpu(),
        }
        converged = self._placed(pairs.converged.to(torch.int8), missing=0)
        return {name: self._placed(x).numpy() for name, x in numbers.items()} | {
            "converged": converged.numpy()
        }

    def observe_step(self, step: Float[Tensor, " n"]) -> dict[str, Any]:
        """Say what the optimizer's step did in each eigenspace of the newest measurement.

        Args:
            step: Δθ.

        Returns:
            Fields of the measurement.
        """
        if self._pairs is None:
            return {}
        along = project(self._pairs.vectors, step).cpu()
        numbers = {"step_projection": along, "regret": regret(along, **self._model)}
        return {name: self._placed(x).numpy() for name, x in numbers.items()}

    def _places_of(self, pairs: RitzPairs, top: int) -> Int[Tensor, " k"]:
        bottom = len(pairs.values) - top
        return torch.tensor([*range(top), *range(self.axis - bottom, self.axis)], dtype=torch.long)

    def _placed(self, numbers: Tensor, missing: float = np.nan) -> Tensor:
        """Put the pairs' numbers at their places on the run file's pair axis."""
        placed = numbers.new_full((self.axis, *numbers.shape[1:]), missing)
        placed[self._places] = numbers
        return placed

    def _follow(
        self, pairs: RitzPairs, previous: RitzPairs, before: Tensor, distance: float
    ) -> Float[Tensor, " k"]:
        """Update the drift; a pair that did not converge at both ends of it is left out."""
        matching = match_pairs(pairs.vectors, previous.vectors)
        row = matching.source.clamp(min=0)
        known = matching.found & pairs.converged & previous.converged[row]
        change = torch.where(known, pairs.values - previous.values[row], torch.nan)
        source = torch.where(matching.found, before[row], -1)
        self.drift.follow(self._placed(source, missing=-1))
        self.drift.update(self._placed(change), distance)
        return matching.overlap
