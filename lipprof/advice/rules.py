"""The rules that read Lipschitz parameters.

* ``newton-safe``: L over 3λ²/γ (eq. 8), where Newton's step begins to ascend in the worst case.
  Nothing to tune.
* ``threshold``: L over a constant (Alg. 2).  Not scale-free: loss × c needs another constant.

All but ``threshold`` are invariant under loss × c and under the order of the units.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lipprof.advice.evidence import MOSTLY_NOISE, Evidence, Numbers
from lipprof.advice.rule import Ratio, Rule, is_number, over


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
    threshold_name: ClassVar[str] = "3λ²/γ"

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
    threshold_name: ClassVar[str] = "the limit"

    def __post_init__(self) -> None:
        self._require(is_number(self.limit) and self.limit > 0, "limit > 0")

    def threshold(self, evidence: Evidence) -> Numbers:
        """The constant."""
        return np.full(len(evidence.names), float(self.limit))

    def _bounds(self, evidence: Evidence) -> Ratio:
        constant = self.threshold(evidence)
        return Ratio(constant, constant)


def missing_estimate(evidence: Evidence, index: int) -> str:
    """Name what is not known of a unit: L, or else λ."""
    return f"{'Lipschitz' if np.isnan(evidence.lipschitz[index]) else 'curvature'} estimate"
