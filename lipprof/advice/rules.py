"""The rules that read what was measured: Lipschitz parameters, or both optimizers' next steps.

* ``newton-safe``: L over 3λ²/γ (eq. 8), where Newton's step begins to ascend in the worst case.
  Nothing to tune.
* ``threshold``: L over a constant (Alg. 2).  Not scale-free: loss × c needs another constant.
* ``quantile``: the share of the parameters with the largest or the smallest L.
* ``descent``: the loss along the next step of either optimizer.

All but ``threshold`` are invariant under loss × c and under the order of the units.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from lipprof.advice.evidence import MOSTLY_NOISE, Candidate, Evidence, Numbers
from lipprof.advice.ranks import odds_ratio, positions
from lipprof.advice.rule import Ratio, Rule, is_number, is_share, over


@dataclass(frozen=True)
class Limited(Rule):
    """L over a threshold."""

    @abstractmethod
    def _bounds(self, evidence: Evidence) -> Ratio:
        """Within which the threshold is known."""

    def ratio(self, evidence: Evidence) -> Ratio:
        """L over its threshold; infinite where that is 0, even for L = 0."""
        low, high = self._bounds(evidence)
        return Ratio(over(evidence.lipschitz, high), over(evidence.lipschitz_upper, low))

    def missing(self, evidence: Evidence, index: int) -> str:
        """L, or else λ."""
        return missing_estimate(evidence, index)

    def margin(self, evidence: Evidence, index: int) -> str:
        """The bounds of L and those of the threshold."""
        low, high = self._bounds(evidence)
        return (
            f"L is {evidence.lipschitz[index]:.1e} to {evidence.lipschitz_upper[index]:.1e}, "
            f"{self.threshold_name} {low[index]:.1e} to {high[index]:.1e}"
        )

    def cause(self, evidence: Evidence, index: int) -> str:
        """L and the threshold."""
        asks_first = self.ratio(evidence).low[index] >= 1
        compared = f"L = {evidence.lipschitz[index]:.2e}"
        if not asks_first and evidence.noise[index] > MOSTLY_NOISE:
            compared = f"L ≤ {evidence.lipschitz_upper[index]:.2e}"
        relation = "≥" if asks_first else "<"
        threshold = self.threshold(evidence)[index]
        return f"{compared} {relation} {self.threshold_name} = {threshold:.2e}"


@dataclass(frozen=True)
class NewtonSafe(Limited):
    """First-order where L ≥ 3λ²/γ: there Newton's step ascends in the worst case (eq. 8)."""

    name: ClassVar[str] = "newton-safe"

    @property
    def threshold_name(self) -> str:
        """3λ²/γ."""
        return "3λ²/γ"

    def threshold(self, evidence: Evidence) -> Numbers:
        """3λ²/γ."""
        return evidence.threshold

    def _bounds(self, evidence: Evidence) -> Ratio:
        return Ratio(evidence.threshold_low, evidence.threshold_high)

    def cause(self, evidence: Evidence, index: int) -> str:
        """L and 3λ²/γ, or that the curvature is not positive."""
        curvature = evidence.curvature[index]
        if curvature <= 0:
            return f"curvature λ = {curvature:.2e} is not positive: Newton would ascend"
        return super().cause(evidence, index)


@dataclass(frozen=True)
class Threshold(Limited):
    """First-order where L ≥ ``limit``, loss/param³ (Alg. 2; 2e-10 in App. K)."""

    limit: float
    name: ClassVar[str] = "threshold"

    def __post_init__(self) -> None:
        self._require(is_number(self.limit) and self.limit > 0, "limit > 0")

    @property
    def threshold_name(self) -> str:
        """Just that."""
        return "the limit"

    def threshold(self, evidence: Evidence) -> Numbers:
        """The constant."""
        return np.full(len(evidence.names), float(self.limit))

    def _bounds(self, evidence: Evidence) -> Ratio:
        constant = self.threshold(evidence)
        return Ratio(constant, constant)


@dataclass(frozen=True)
class Quantile(Rule):
    """First-order: the ``share`` with the largest L (``side="high"``) or the smallest (``"low"``).

    The paper's direction is ``high``.  The share is one of the parameters, or with ``of="units"``
    of the tensors, among those whose L is known.  Only ranks count, not sizes: a hysteresis of 2
    with share 0.3 lets a unit go from second to first at position 0.18 (odds 0.21) and back at 0.46
    (odds 0.86); see ``lipprof.advice.ranks``.
    """

    share: float = 0.3
    side: Literal["high", "low"] = "high"
    of: Literal["parameters", "units"] = "parameters"
    name: ClassVar[str] = "quantile"

    def __post_init__(self) -> None:
        self._require(is_share(self.share), "share in [0, 1]")
        self._require(self.side in {"high", "low"}, "side high or low")
        self._require(self.of in {"parameters", "units"}, "of parameters or units")

    def ratio(self, evidence: Evidence) -> Ratio:
        """How clearly a unit is within the share, as a ratio of odds."""
        return odds_ratio(self.share, *self._positions(evidence))

    def missing(self, evidence: Evidence, index: int) -> str:
        """L."""
        return missing_estimate(evidence, index)

    def margin(self, evidence: Evidence, index: int) -> str:
        """The bounds of the position."""
        worst, best = (bound[index] for bound in self._positions(evidence))
        return f"L ranks {best:.0%} to {worst:.0%} from the {self._end}, share = {self.share:.0%}"

    def cause(self, evidence: Evidence, index: int) -> str:
        """The position and the share."""
        worst, best = (bound[index] for bound in self._positions(evidence))
        first = worst <= self.share
        where = f"{worst:.0%} ≤" if first else f"{best:.0%} >"
        lipschitz = f"L = {evidence.lipschitz[index]:.2e}"
        return f"{lipschitz} ranks {where} {self.share:.0%} of the {self.of} from the {self._end}"

    @property
    def _end(self) -> str:
        return "largest" if self.side == "high" else "smallest"

    def _positions(self, evidence: Evidence) -> tuple[Numbers, Numbers]:
        weights = evidence.numel if self.of == "parameters" else np.ones(len(evidence.names))
        low, high = evidence.lipschitz, evidence.lipschitz_upper
        if self.side == "low":
            low, high = -high, -low
        return positions(low, high, weights)


@dataclass(frozen=True)
class Descent(Rule):
    """First-order where the first optimizer's next step promises at least as much descent.

    In the worst case of the third order, and over ``horizon`` steps like it, the loss changes by

        M = −horizon·slope + curvature/2 + |bend|/6,

    for descent adds up, while what a step spends on curvature is an oscillation that the next one
    takes back.  ``horizon=1`` is the step itself, and prefers whatever steps least: see
    ``examples/amos``.
    """

    horizon: float = 10.0
    name: ClassVar[str] = "descent"

    def __post_init__(self) -> None:
        self._require(
            is_number(self.horizon) and 0 < self.horizon < np.inf, "a number > 0 as horizon"
        )

    @property
    def needs_lipschitz(self) -> bool:
        """It does not."""
        return False

    @property
    def needs_candidates(self) -> bool:
        """It does."""
        return True

    def ratio(self, evidence: Evidence) -> Ratio:
        """Quotient of the descents, or of the ascents inverted; ∞ where the second has no step."""
        first, second = self._changes(evidence)
        falls, rises = over(-first, -second), over(second, first)
        ratio = np.where((first < 0) & (second < 0), falls, rises)
        ratio = np.where((first < 0) & (second >= 0), np.inf, ratio)
        ratio = np.where((first >= 0) & (second < 0), 0.0, ratio)
        ratio = np.where(np.isnan(second), np.inf, ratio)
        ratio = np.where(np.isnan(first), np.nan, ratio)
        return Ratio(ratio, ratio)

    def missing(self, evidence: Evidence, index: int) -> str:  # noqa: ARG002
        """Both steps."""
        return "next steps of both optimizers"

    def cause(self, evidence: Evidence, index: int) -> str:
        """Both changes of the loss."""
        first, second = (change[index] for change in self._changes(evidence))
        if np.isnan(second):
            return "the second optimizer has no step for it"
        return (
            f"worst-case change of the loss over {self.horizon:g} steps: {first:+.2e} by the first "
            f"optimizer, {second:+.2e} by the second"
        )

    def _changes(self, evidence: Evidence) -> tuple[Numbers, Numbers]:
        return self._change(evidence, evidence.first), self._change(evidence, evidence.second)

    def _change(self, evidence: Evidence, candidate: Candidate | None) -> Numbers:
        if candidate is None:
            return np.full(len(evidence.names), np.nan)
        with np.errstate(all="ignore"):
            cost = candidate.curvature / 2 + np.abs(candidate.bend) / 6
            return cost - self.horizon * candidate.slope


def missing_estimate(evidence: Evidence, index: int) -> str:
    """Name what is not known of a unit: L, or else λ."""
    return f"{'Lipschitz' if np.isnan(evidence.lipschitz[index]) else 'curvature'} estimate"
