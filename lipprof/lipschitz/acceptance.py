"""When a cubic model was too liberal or too conservative: the ratio of actual to predicted descent.

    ρ = [f(θ) − f(θ + s)] / predicted,    rounding of ρ:  δ = ε (|f(θ)| + |f(θ + s)|) / predicted

The rule of adaptive cubic regularisation (Cartis, Gould & Toint 2011, algorithm 2.1) for one
penalty σ, and of EigenARC (Alg. 3) for one L per eigenspace: below η₁ raise by γ₁, above η₂ lower
by γ₂, in between keep.

The descent is a difference of two losses and has their rounding.  Where δ > (η₂ − η₁)/2, that could
turn one verdict into its opposite: ρ then counts as unresolved, unless ρ + δ < η₁ or ρ − δ > η₂
settles it all the same.  Measured in float32 on an MLP, a CNN and a GPT, with ε = eps: ρ is off
by 0.2 to 0.4 δ on average, by 1.1 δ at most.
"""

import enum
import math
from dataclasses import dataclass
from typing import NamedTuple

from lipprof.errors import ConfigError

SMALLEST, LARGEST = 1e-150, 1e150
"""Bounds of σ and L, so that no run of equal verdicts ends at zero or infinity, and stays there."""


class Verdict(enum.Enum):
    """What a trial step says of the model that proposed it."""

    UNSUCCESSFUL = "ρ < η₁: the model promised too much"
    SUCCESSFUL = "η₁ ≤ ρ ≤ η₂"
    VERY_SUCCESSFUL = "ρ > η₂: the model was too careful"
    UNRESOLVED = "the descent is lost in the rounding of the loss"

    @property
    def holds(self) -> bool:
        """Whether ρ ≥ η₁, beyond rounding."""
        return self in {Verdict.SUCCESSFUL, Verdict.VERY_SUCCESSFUL}


class Trial(NamedTuple):
    """A trial step, judged."""

    ratio: float  # ρ; −inf where the loss is not finite, NaN where no descent was predicted
    verdict: Verdict


REFUSED = Trial(-math.inf, Verdict.UNSUCCESSFUL)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceRule:
    """Thresholds of ρ and the factors that follow from them; the paper's (App. J)."""

    eta1: float = 0.1
    eta2: float = 0.9
    gamma1: float = 2.0  # App. J prints γ₁ = γ₂ = 2, meaning factors of 2 and ½
    gamma2: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.eta1 <= self.eta2 < 1:
            raise ConfigError(
                f"Got eta1={self.eta1}, eta2={self.eta2}: expected 0 < eta1 <= eta2 < 1."
            )
        if not 0 < self.gamma2 < 1 < self.gamma1 < math.inf:
            raise ConfigError(
                f"Got gamma1={self.gamma1}, gamma2={self.gamma2}: expected gamma1 > 1, the factor "
                "to raise by, and 0 < gamma2 < 1, the factor to lower by."
            )

    def factor(self, verdict: Verdict) -> float:
        """What the penalty is multiplied by."""
        factors = {Verdict.UNSUCCESSFUL: self.gamma1, Verdict.VERY_SUCCESSFUL: self.gamma2}
        return factors.get(verdict, 1.0)

    def judge(self, *, loss: float, trial: float, predicted: float, rounding: float) -> Trial:
        """Compare the descent of a step with what a model predicted.

        Args:
            loss: f(θ).
            trial: f(θ + s).
            predicted: descent according to the model, ≥ 0.
            rounding: ε, of a loss evaluation, relative.

        Returns:
            ρ and what it means.
        """
        if not math.isfinite(trial):
            return REFUSED
        if not predicted > 0:
            return Trial(math.nan, Verdict.UNRESOLVED)
        ratio = (loss - trial) / predicted
        noise = rounding * (abs(loss) + abs(trial)) / predicted
        if noise > (self.eta2 - self.eta1) / 2 and (
            ratio + noise >= self.eta1 and ratio - noise <= self.eta2
        ):
            return Trial(ratio, Verdict.UNRESOLVED)
        if ratio < self.eta1:
            return Trial(ratio, Verdict.UNSUCCESSFUL)
        return Trial(ratio, Verdict.VERY_SUCCESSFUL if ratio > self.eta2 else Verdict.SUCCESSFUL)
