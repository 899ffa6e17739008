"""The answer: for every unit, first-order or second-order, with the reason in numbers."""

import difflib
import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipprof.advice.evidence import Evidence, Numbers
from lipprof.advice.rule import Rule
from lipprof.errors import ConfigError


class Choice(enum.IntEnum):
    """Which kind of optimizer a tensor deserves; the codes are those of the run file."""

    NONE = 0
    FIRST = 1
    SECOND = 2

    @property
    def label(self) -> str:
        """The choice in words."""
        return {0: "none yet", 1: "first-order", 2: "second-order"}[self.value]

    @property
    def other(self) -> "Choice":
        """The other side; of none, none."""
        return (Choice.NONE, Choice.SECOND, Choice.FIRST)[self.value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """One choice per unit at one iteration.  All arrays have shape (T,), in flat order."""

    rule: Rule
    evidence: Evidence
    low: Numbers  # the rule's ratio: 1 and above is for first-order
    high: Numbers
    choice: NDArray[np.int8]  # codes of Choice
    stable_for: NDArray[np.int64]  # measurements since the choice last changed
    warmup: int = 0  # no answer before this iteration

    @property
    def iteration(self) -> int:
        """Completed optimizer steps."""
        return self.evidence.iteration

    @property
    def names(self) -> Sequence[str]:
        """Of the units."""
        return self.evidence.names

    @property
    def numel(self) -> NDArray[np.int64]:
        """Parameters of each unit."""
        return self.evidence.numel

    def __getitem__(self, name: str) -> Choice:
        """Return the choice for the tensor called ``name``.

        Raises:
            ConfigError: there is no such tensor.
        """
        names = list(self.names)
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3)
            hint = f"; did you mean {', '.join(map(repr, near))}?" if near else "."
            raise ConfigError(f"None of the {len(names)} tensors is called {name!r}{hint}")
        return Choice(int(self.choice[names.index(name)]))

    @property
    def threshold(self) -> Numbers:
        """What the rule compares L with, loss/param³; NaN where it compares otherwise."""
        return self.rule.threshold(self.evidence)

    @property
    def first_order_share(self) -> float:
        """Share of all parameters (not tensors) that are recommended to the first-order side.

        NaN while no tensor has an answer.
        """
        decided = self.choice != Choice.NONE
        total = self.numel[decided].sum()
        if total == 0:
            return float("nan")
        return float(self.numel[self.choice == Choice.FIRST].sum() / total)

    def reason(self, index: int) -> str:
        """Say in one line what decided for the tensor at ``index``.

        Returns:
            A sentence with the numbers that were compared.
        """
        choice, rule = Choice(int(self.choice[index])), self.rule
        kept = "" if choice is Choice.NONE else f": kept {choice.label}"
        if self.iteration < self.warmup:
            return f"warm-up until iteration {self.warmup}{kept}"
        if np.isnan(self.low[index]):
            newness = "yet" if choice is Choice.NONE else "now"
            return f"no {rule.missing(self.evidence, index)} {newness}{kept}"
        asks_first = self.low[index] >= 1
        if not asks_first and not self.high[index] < 1:
            margin = rule.margin(self.evidence, index)
            return f"{rule.doubt}{kept}; {margin}"
        cause = rule.cause(self.evidence, index)
        held = kept and asks_first != (choice is Choice.FIRST)
        return f"{cause}, kept {choice.label} by hysteresis" if held else cause
