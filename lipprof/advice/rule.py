"""What a rule is: from the evidence of one measurement to how much it speaks for the first side.

A rule maps evidence to a ratio per unit, known within bounds: 1 and above is for the first-order
side, below 1 for the second-order side, NaN says nothing.  It is pure; what depends on earlier
measurements (hysteresis as a factor on the ratio, dwell, warm-up) is the ``Advisor``'s.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import ClassVar, NamedTuple, TypeGuard

import numpy as np

from lipprof.advice.evidence import Evidence, Numbers
from lipprof.errors import ConfigError
from lipprof.rule_text import write_rule

MORE_PROBES = "raise diagonal_probes"


class Ratio(NamedTuple):
    """By how much the evidence speaks for the first-order side, within bounds; each (T,)."""

    low: Numbers
    high: Numbers


@dataclass(frozen=True)
class Rule(ABC):
    """One rule; its fields are its options.

    Attributes:
        name: in texts such as ``quantile(share=0.3)``.
    """

    name: ClassVar[str]

    @property
    def needs_lipschitz(self) -> bool:
        """Whether it reads L, λ or γ."""
        return True

    @property
    def needs_candidates(self) -> bool:
        """Whether it reads the loss along both arms' next updates."""
        return False

    @property
    def fixed(self) -> bool:
        """Whether it needs no measurement: then its answers count at once, without dwell."""
        return not self.needs_lipschitz and not self.needs_candidates

    @property
    def moments(self) -> tuple[int, ...]:
        """Iterations at which the answer of a fixed rule may change."""
        return (0,)

    def check(self, names: Sequence[str]) -> None:  # noqa: B027 - most rules fit any units
        """Refuse options that do not fit the units, before anything is measured.

        Args:
            names: of the units.

        Raises:
            ConfigError: they do not fit.
        """  # noqa: DOC502

    @abstractmethod
    def ratio(self, evidence: Evidence) -> Ratio:
        """Weigh the evidence; see the module."""

    @abstractmethod
    def cause(self, evidence: Evidence, index: int) -> str:
        """Say in numbers what the ratio of one unit rests on."""

    def missing(self, evidence: Evidence, index: int) -> str:  # noqa: ARG002
        """Name what is not known where the ratio is NaN."""
        return "estimate"

    def margin(self, evidence: Evidence, index: int) -> str:
        """Say what the bounds are that leave the question open, and what to do."""
        low, high = (float(bound[index]) for bound in self.ratio(evidence))
        return f"the ratio is {low:.1e} to {high:.1e}: {MORE_PROBES}"

    @property
    def doubt(self) -> str:
        """What leaves a question open."""
        return "noise hides it"

    @property
    def threshold_name(self) -> str:
        """What L is compared with, in words; empty where a rule compares otherwise."""
        return ""

    def threshold(self, evidence: Evidence) -> Numbers:
        """What L is compared with, (T,), loss/param³; NaN where a rule compares otherwise."""
        return np.full(len(evidence.names), np.nan)

    def __str__(self) -> str:
        """The text that ``rule_of`` reads back."""
        defaults = {f.name: f.default for f in fields(self) if f.default is not MISSING}
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {k: v for k, v in given.items() if k not in defaults or v != defaults[k]}
        return write_rule(self.name, changed)

    def _require(self, holds: bool, expected: str) -> None:
        if not holds:
            raise ConfigError(f"Got rule {self}: expected {expected}.")


def over(numerator: Numbers, denominator: Numbers) -> Numbers:
    """Divide numbers ≥ 0 so that the quotient is ≥ 1 exactly where numerator ≥ denominator.

    Returns:
        The quotient; infinite for x/0, 0/0 and ∞/∞; NaN where either is NaN.
    """
    with np.errstate(all="ignore"):
        quotient = numerator / denominator
    certain = (numerator >= denominator) & ((denominator == 0) | np.isinf(numerator))
    return np.where(certain, np.inf, quotient)


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether an option is a plain number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_share(value: object) -> bool:
    """Tell whether an option is a number from 0 to 1."""
    return is_number(value) and 0 <= value <= 1


def is_count(value: object) -> bool:
    """Tell whether an option is a whole number ≥ 0."""
    return isinstance(value, int) and is_number(value) and value >= 0
