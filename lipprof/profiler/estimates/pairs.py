"""Eigenpairs through training: oriented, and followed from one measurement to the next.

Between measurements this holds the eigenvectors, (top + bottom) · n numbers.  Where a measurement
computes fewer pairs than the run file has places for, ``places`` says which.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lipprof.linalg import RitzPairs
from lipprof.linalg.inner import project
from lipprof.lipschitz import (
    Event,
    basis_change,
    clusters,
    match_pairs,
    principal_angles,
    rotation_lipschitz,
)
from lipprof.record import Match
from lipprof.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenPairs:
    """The k eigenpairs of one measurement; all but the vectors on the CPU."""

    vectors: Float[Tensor, "k n"]  # oriented by g · v ≤ 0 (eq. 1)
    values: Float[Tensor, " k"]
    residuals: Float[Tensor, " k"]
    converged: Bool[Tensor, " k"]
    slope: Float[Tensor, " k"]  # γ = |g · v|
    change: Float[Tensor, " k"]  # of λ since the last measurement; NaN: unknown
    cluster: Int[Tensor, " k"]  # label; equal ones cannot be told apart
    source: Int[Tensor, " P"]  # place on the pair axis that a place continues; −1: none
    places: Int[Tensor, " k"]  # on the run file's pair axis, which has P

    @property
    def certain(self) -> dict[str, Float[Tensor, " k"]]:
        """Slope and curvature for the cubic model; NaN where a pair did not converge."""
        known = {"slope": self.slope, "curvature": self.values}
        return {name: torch.where(self.converged, x, torch.nan) for name, x in known.items()}

    def placed(self, numbers: Tensor, missing: float = np.nan) -> Tensor:
        """Put the pairs' numbers at their places.

        Args:
            numbers: (k, ...).
            missing: for places without a pair.

        Returns:
            (P, ...).
        """
        placed = numbers.new_full((len(self.source), *numbers.shape[1:]), missing)
        placed[self.places] = numbers
        return placed

    def fields(self, numbers: dict[str, Tensor]) -> dict[str, Any]:
        """Make fields of a measurement out of the pairs' numbers."""
        return {name: self.placed(x).numpy() for name, x in numbers.items()}


class PairObserver:
    """Follows the eigenpairs of a run.

    Args:
        settings: of the run.
        numel: entries of each unit that the vectors' mass is given of.
    """

    def __init__(self, settings: Settings, numel: Sequence[int]) -> None:
        self.numel = list(numel)
        self.axis = settings.top + settings.bottom
        self._is_top = torch.arange(self.axis) < settings.top
        self.seen: SeenPairs | None = None  # at the newest measurement

    def observe(
        self, pairs: RitzPairs | None, top: int, gradient: Float[Tensor, " n"], distance: float
    ) -> dict[str, Any]:
        """Take in the pairs of a measurement.

        Args:
            pairs: those that were computed; None: none were.
            top: how many of them are of the top end.
            gradient: at the same parameters.
            distance: ‖θ_t − θ_{t−1}‖ since the measurement before; param.

        Returns:
            Fields of the measurement.
        """
        previous, self.seen = self.seen, None
        if pairs is None:
            return {}
        projection = project(pairs.vectors, gradient)
        pairs.vectors.mul_(torch.where(projection > 0, -1, 1).to(pairs.vectors)[:, None])
        bottom = len(pairs.values) - top
        self.seen = SeenPairs(
            vectors=pairs.vectors,
            values=pairs.values,
            residuals=pairs.residuals,
            converged=pairs.converged,
            slope=projection.abs().cpu(),
            change=torch.full_like(pairs.values, torch.nan),
            cluster=clusters(pairs.values, pairs.residuals),
            source=torch.full((self.axis,), -1),
            places=torch.tensor([*range(top), *range(self.axis - bottom, self.axis)]),
        )
        found = {} if previous is None else self._follow(previous, distance)
        mass = [part.double().square().sum(1) for part in pairs.vectors.split(self.numel, 1)]
        converged = self.seen.placed(pairs.converged.to(torch.int8), missing=0)
        found |= self.seen.fields({
            "eigenvalue": pairs.values,
            "residual": pairs.residuals,
            "grad_projection": -self.seen.slope,
            "eigenvector_mass": torch.stack(mass, 1).cpu(),
        })
        return found | {"converged": converged.numpy()}

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly: the pairs, by field."""
        if self.seen is None:
            return {}
        return {field.name: getattr(self.seen, field.name) for field in fields(SeenPairs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, from whatever device."""
        rest = {name: x if name == "vectors" else x.cpu() for name, x in state.items()}
        self.seen = SeenPairs(**rest) if rest else None

    def _follow(self, previous: SeenPairs, distance: float) -> dict[str, Any]:
        """Match the pairs with those before, and say how far they turned."""
        seen = self.seen
        assert seen is not None
        previous = replace(previous, vectors=previous.vectors.to(seen.vectors))
        matching = match_pairs(
            seen.vectors,
            previous.vectors,
            clusters=seen.cluster,
            previous_clusters=previous.cluster,
        )
        change = matching.change(seen.certain["curvature"], previous.certain["curvature"])
        change[matching.event == Event.REGROUPED] = torch.nan  # known to a cluster's width only
        source = seen.source.clone()
        row = matching.source.clamp(min=0)
        source[seen.places] = torch.where(matching.found, previous.places[row], -1)
        self.seen = replace(seen, change=change, source=source)
        turn = basis_change(seen.vectors, previous.vectors, matching)
        event = seen.placed((matching.event + 1).to(torch.int8), missing=Match.UNKNOWN)
        return {
            "match": event.numpy(),
            "lost_pairs": len(matching.lost),
            "rotation": rotation_lipschitz(turn, distance),
            "principal_angle": self._angles(seen, previous).numpy(),
        } | seen.fields({"overlap": matching.overlap})

    def _angles(self, seen: SeenPairs, previous: SeenPairs) -> Float[Tensor, " P"]:
        """Principal angles between the spans of either end, at the outermost places of the end."""
        angles = torch.full((self.axis,), torch.nan, dtype=torch.float64)
        top, bottom = self._is_top.nonzero()[:, 0], (~self._is_top).nonzero()[:, 0]
        for end in (top, bottom.flip(0)):
            spans = [one.vectors[torch.isin(one.places, end)] for one in (seen, previous)]
            found = principal_angles(*spans)
            angles[end[: len(found)]] = found
        return angles
