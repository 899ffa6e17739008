"""Trial periods: when the optimizers of AMOS are tried beside each other, and who goes on.

Everything that may switch is one unit here.  Who competes is an entry: one of the two optimizers at
its given learning rate, or at a calibrated one.  A trial runs all entries from the same parameters
over the same batches.  At its end each is judged by the lower of two losses, at its parameters and
at their average over the second half of the trial; the lowest of all goes on:

* At its parameters, whoever steps least looks good: to take noise out of the parameters lowers the
  loss at once and leads nowhere.  The average has no such noise, whoever steps.
* On average, whoever still falls fast looks bad: its average lags behind.
* Over few steps, shorter ones look better than they are (Wu et al. 2018, short-horizon bias): a
  learning rate that calibration has lowered has to lead the given one by ``MARGIN`` of its descent.
* Losses of arms that have trained side by side from the first step on do not tell who is better:
  the first 60 steps of AdamW are slow on some seeds, and whatever is beside it looks good.

``examples/amos`` has what was measured: how often trials of other lengths, at other times and by
other losses choose an arm that is worse in the end.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lipprof.advice.recommendation import Choice
from lipprof.errors import ConfigError

MARGIN = 0.15
"""Of the descent of a trial.  On the character GPT a tuned SOAP, lowered 2.5 times, led the given
one by 0.02 to 0.12 of it and ended 0.03 to 0.07 higher; Muon, lowered from 4 times too high, led by
0.19 to 0.44 and ended 0.13 to 0.17 lower (five seeds)."""

_NAMES = {Choice.FIRST: "first", Choice.SECOND: "second"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContestPlan:
    """When the trial begins and how long it is, in iterations.

    Each entry but the one that trains costs a forward and backward for every iteration up to the
    end of the trial, and within the trial two.

    Attributes:
        start: completed iterations before the trial.
        period: its length.

    Raises:
        ConfigError: a value out of range.
    """

    start: int = 60
    period: int = 40

    def __post_init__(self) -> None:
        whole = all(isinstance(n, int) for n in (self.start, self.period))
        if not whole or not self.start >= 1 or not self.period >= 2:
            raise ConfigError(f"Got {self}: expected whole numbers start >= 1 and period >= 2.")


class Entry(NamedTuple):
    """Who competes."""

    side: Choice
    calibrated: bool = False

    @property
    def label(self) -> str:
        """In words, after "by the"."""
        return _NAMES[self.side] + (" calibrated" if self.calibrated else "")


class Losses(NamedTuple):
    """Of one entry after a trial; infinite: it diverged."""

    end: float  # at its parameters
    average: float  # at their average over the second half

    @property
    def lower(self) -> float:
        """The lower of the two; infinite where neither is a number."""
        return min((loss for loss in self if not math.isnan(loss)), default=math.inf)


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """How a trial ended; see the module.

    Attributes:
        losses: of every entry, the one that trained before first; of equals the first one wins.
        before: loss where the trial began; NaN: unknown, and there is no margin.
        lowered: entries whose learning rate calibration has lowered.
    """

    losses: Mapping[Entry, Losses]
    before: float = math.nan
    lowered: frozenset[Entry] = frozenset()

    @property
    def winner(self) -> Entry:
        """Who goes on."""
        led = [entry for entry in self.losses if entry not in self.lowered or self._leads(entry)]
        return min(led, key=lambda entry: self.losses[entry].lower)

    def _leads(self, entry: Entry) -> bool:
        """Whether it leads what it was made of by enough to believe it."""
        given, mine = self.losses[Entry(entry.side)].lower, self.losses[entry].lower
        descent = self.before - mine
        return mine < given - (MARGIN * descent if 0 < descent < math.inf else 0.0)

    @property
    def reason(self) -> str:
        """All losses, in words."""
        told = {e: losses for e, losses in self.losses.items() if all(map(math.isfinite, losses))}
        ends = _listed([f"{losses.end:.4g} by the {entry.label}" for entry, losses in told.items()])
        averages = _listed([f"{losses.average:.4g}" for losses in told.values()])
        lost = [entry.label for entry, losses in self.losses.items() if math.isinf(losses.lower)]
        diverged = f"the {_listed(lost)} diverged"
        if len(told) < 2:
            return f"in a trial, {diverged}"
        return (
            f"in a trial, the loss went to {ends} optimizer, {averages} at averaged parameters"
            + (f"; {diverged}" if lost else "")
        )


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
