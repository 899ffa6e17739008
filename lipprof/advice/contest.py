"""Trial periods: when the optimizers of AMOS are tried beside each other, and who goes on.

Everything that may switch is one unit here.  Who competes is an entry: one of the two optimizers at
its given learning rate, or at a calibrated one.  A trial runs all entries from the same parameters
over the same batches, and compares two losses at its end, for each: at its parameters, and at their
average over the second half of the trial.  Whoever trained before stays unless others are ahead of
it by both; of those the one with the lowest average goes on:

* Greedy comparisons of one step, and of a few, prefer whatever steps least: to take noise out of
  the parameters lowers the loss at once and leads nowhere.  The average has no such noise on either
  side, so an arm that is too short gains nothing by damping what the other stirs up.
* An arm that is too long looks well on average and is high where it stands.
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

    def gradients(self, entries: int) -> int:
        """How many gradients more than training a contest takes, but for waiting on calibration.

        Args:
            entries: how many compete, the one that trains included.

        Returns:
            Forwards and backwards.
        """
        return (entries - 1) * (self.start + 2 * self.period)


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
    def finite(self) -> bool:
        """Whether it came to the end."""
        return math.isfinite(self.end) and math.isfinite(self.average)


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """How a trial ended; see the module.

    Attributes:
        losses: of every entry, the one that trained before first.
    """

    losses: Mapping[Entry, Losses]

    @property
    def winner(self) -> Entry:
        """Who goes on."""
        (incumbent, mine), *others = self.losses.items()
        ahead = {
            entry: losses.average
            for entry, losses in others
            if losses.finite
            and (not mine.finite or (losses.end < mine.end and losses.average < mine.average))
        }
        return min(ahead, key=ahead.__getitem__, default=incumbent)

    @property
    def reason(self) -> str:
        """All losses, in words."""
        told = {entry: losses for entry, losses in self.losses.items() if losses.finite}
        ends = _listed([f"{losses.end:.4g} by the {entry.label}" for entry, losses in told.items()])
        averages = _listed([f"{losses.average:.4g}" for losses in told.values()])
        lost = [e.label for e, losses in self.losses.items() if not math.isfinite(losses.end)]
        diverged = f"; the {_listed(lost)} diverged" if lost else ""
        if len(told) < 2:
            return f"in a trial{diverged.replace(';', ',')}"
        return (
            f"in a trial, the loss went to {ends} optimizer, {averages} at averaged parameters"
            f"{diverged}"
        )


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
