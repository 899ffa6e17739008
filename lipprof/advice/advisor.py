"""From a series of measurements to a steady answer: abstention, hysteresis, dwell, warm-up.

A rule says by what ratio each measurement speaks for the first-order side.  Where the ratio is
known only within bounds that 1 lies between, the question stays open: a unit without an answer gets
none, one with an answer keeps it.  An answer once given changes only when the ratio has passed 1 by
a factor, several measurements running.  Answers of rules that need no measurement count at once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lipprof.advice.evidence import Evidence
from lipprof.advice.named import rule_of
from lipprof.advice.recommendation import Choice, Recommendation
from lipprof.advice.rule import Ratio, Rule
from lipprof.errors import ConfigError, ShapeError

COLLAPSE_SHARE = 0.95
COLLAPSE_DISTANCE = 0.3
COLLAPSE_MEASUREMENTS = 3


class Advisor:
    """Gives every unit its choice, measurement after measurement; holds the hysteresis' state.

    Args:
        names: of the units, in flat order.
        rule: a rule, or its text; see ``lipprof.rule_text``.
        threshold: the limit of rule ``threshold`` where its text has none, loss/param³.
        hysteresis: factor by which a ratio must pass 1 to change an answer.
        dwell: measurements running at which it must do so.
        warmup: no answers before this iteration; AMOS leaves its tensors where they started.

    Raises:
        ConfigError: an option is unknown, out of range or does not fit the units.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        rule: Rule | str = "newton-safe",
        threshold: float = 2e-10,
        hysteresis: float = 2.0,
        dwell: int = 2,
        warmup: int = 0,
    ) -> None:
        if not threshold > 0 or not hysteresis >= 1 or not dwell >= 1 or not warmup >= 0:
            raise ConfigError(
                f"Got {threshold=}, {hysteresis=}, {dwell=}, {warmup=}: expected threshold > 0, "
                "hysteresis >= 1, dwell >= 1 and warmup >= 0."
            )
        self.rule = rule_of(rule, threshold)
        self.rule.check(names)
        self.warmup = warmup
        self._hysteresis, self._dwell = (1.0, 1) if self.rule.fixed else (hysteresis, dwell)
        count = len(names)
        self._choice = np.full(count, Choice.NONE, np.int8)
        self._against = np.zeros(count, np.int64)  # measurements against the answer
        self._stable_for = np.zeros(count, np.int64)
        self._collapsing_for = 0

    @classmethod
    def of(cls, names: Sequence[str], settings: Any) -> "Advisor":
        """Build one by what has the same options as attributes, such as ``lipprof.Settings``.

        Args:
            names: of the units.
            settings: has ``rule``, ``threshold``, ``hysteresis``, ``dwell`` and ``warmup``.

        Returns:
            The advisor.

        Raises:
            ConfigError: see the class.
        """  # noqa: DOC502 - raised by the constructor
        return cls(
            names,
            rule=settings.rule,
            threshold=settings.threshold,
            hysteresis=settings.hysteresis,
            dwell=settings.dwell,
            warmup=settings.warmup,
        )

    def advise(self, evidence: Evidence) -> Recommendation:
        """Take in one measurement and answer.

        Args:
            evidence: what was measured, of the units that this was built for.

        Returns:
            The recommendation, hysteresis applied.

        Raises:
            ConfigError: the rule needs what was not measured.
            ShapeError: the evidence is of another number of units.
        """
        if len(evidence.names) != len(self._choice):
            raise ShapeError(
                f"The evidence is of {len(evidence.names)} tensors; expected {len(self._choice)}."
            )
        if self.rule.needs_candidates and (evidence.first is None or evidence.second is None):
            raise ConfigError(
                f"Rule {self.rule} compares the next updates of both optimizers, and they were not "
                "measured. Attach a profiler to AMOS, or choose another rule."
            )
        ratio = self.rule.ratio(evidence)
        if evidence.iteration >= self.warmup:
            self._decide(ratio)
        return Recommendation(
            rule=self.rule,
            evidence=evidence,
            low=ratio.low,
            high=ratio.high,
            choice=self._choice.copy(),
            stable_for=self._stable_for.copy(),
            warmup=self.warmup,
        )

    def _decide(self, ratio: Ratio) -> None:
        low, high = ratio
        known, unanswered = ~np.isnan(low), self._choice == Choice.NONE
        fresh = unanswered & ((low >= 1) | (high < 1))
        wanted = np.where(low >= 1, Choice.FIRST, Choice.SECOND).astype(np.int8)

        clearly_first = low >= self._hysteresis
        clearly_second = high < 1 / self._hysteresis
        against = np.where(self._choice == Choice.FIRST, clearly_second, clearly_first)
        against &= known & ~unanswered
        self._against = np.where(known, np.where(against, self._against + 1, 0), self._against)
        flip = fresh | (against & (self._against >= self._dwell))

        self._stable_for = np.where(flip, 0, self._stable_for + ~unanswered)
        self._choice = np.where(flip, wanted, self._choice)
        self._against = np.where(flip, 0, self._against)

    def collapsing(self, recommendation: Recommendation, distance_ratio: float) -> bool:
        """Detect the absorbing collapse: all on the first-order side while parameters stop moving.

        Args:
            recommendation: the newest.
            distance_ratio: distance since the last measurement over its median.

        Returns:
            True when at least 95 % of the parameters were first-order and the distance was under
            0.3 of its median at three measurements running.
        """
        stuck = (
            recommendation.first_order_share >= COLLAPSE_SHARE
            and distance_ratio < COLLAPSE_DISTANCE
        )
        self._collapsing_for = self._collapsing_for + 1 if stuck else 0
        return self._collapsing_for >= COLLAPSE_MEASUREMENTS

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly."""
        return {
            "choice": self._choice.tolist(),
            "against": self._against.tolist(),
            "stable_for": self._stable_for.tolist(),
            "collapsing_for": self._collapsing_for,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._choice = np.asarray(state["choice"], np.int8)
        self._against = np.asarray(state["against"], np.int64)
        self._stable_for = np.asarray(state["stable_for"], np.int64)
        self._collapsing_for = state["collapsing_for"]
