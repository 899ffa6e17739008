"""Trial periods: when one arm is tried beside the other, and which of the two goes on.

Everything that may switch is one unit here.  A trial runs both arms from the same parameters over
the same batches, and compares two losses at its end, for each arm: at its parameters, and at their
average over the second half of the trial.  The arm that was there before stays unless the other
is ahead by both; where it has won a trial, each time by a tenth of the descent that it made in this
one:

* Greedy comparisons of one step, and of a few, prefer whatever steps least: to take noise out of
  the parameters lowers the loss at once and leads nowhere.  The average has no such noise on either
  side, so an arm that is too short gains nothing by damping what the other stirs up.
* An arm that is too long looks well on average and is high where it stands.

Measured on a small character GPT, AdamW beside Muon (a good learning rate, 4 and 16 times too high,
64 times too low), 15 trials from either arm's state at iterations 60 and 150 of 300, one seed, each
continued to the end with both arms.  The arm with the lower average was ahead at the end in 9
trials of 15 after 20 iterations, 12 after 30 and 13 after 40; the loss given away was 0.022, 0.013
and 0.006 on average.  By the loss at the end of the trial: 10, 10 and 11; 0.025, 0.024 and 0.020.
Without the margin one run lost its good second arm again, where the two had drawn level.  In the
first trial it did harm: an arm four times too short or too long, still the better one, was refused
in five runs of eight, without it in one; the four ended lower by 0.035, 0.043, 0.039 and, one,
higher by 0.018; none of 14 worse arms was let in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lipprof.advice.evidence import Evidence
from lipprof.advice.recommendation import Choice, Recommendation
from lipprof.advice.rule import Ratio, Rule
from lipprof.errors import ConfigError

MARGIN = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ContestPlan:
    """When trials begin and how long they are, in iterations.

    The first at ``first``, and each later one ``growth`` times as late, as training changes ever
    more slowly.  A trial costs one more forward and backward for each of its iterations, so that
    the share of iterations that is paid twice falls with the length of a run: as it stands, to 5 %
    after 800 iterations.  Later trials have done more harm than good in short runs: of 64
    with the second at 4 or 5 times the iteration of the first, 9 changed arms in it, and one gained
    by that.

    Attributes:
        first: iteration of the first one.
        period: its length and that of all later ones.
        growth: of the iteration from one to the next.
        ramp: iterations over which the challenger's steps grow to their full length, as its state
            is cold.  With 10, SOAP on a small GPT (five seeds) ended 0.011 above SOAP alone, where
            without it lost three trials of five by its first steps and ended 0.121 above; but
            Muon, which has little to warm up, came out worse in seven cells of nine.

    Raises:
        ConfigError: a value out of range.
    """

    first: int = 40
    period: int = 40
    growth: float = 16.0
    ramp: int = 0

    def __post_init__(self) -> None:
        whole = all(isinstance(n, int) for n in (self.first, self.period, self.ramp))
        if (
            not whole
            or not self.first >= 1
            or not self.period >= 2
            or not 0 <= self.ramp <= self.period
            or not self.first * (self.growth - 1) >= self.period
        ):
            raise ConfigError(
                f"Got {self}: expected whole numbers first >= 1, period >= 2 and 0 <= ramp <= "
                "period, and a growth by which each trial is over before the next begins."
            )

    def length(self, iteration: int) -> int:
        """How long the trial is that begins at an iteration.

        Args:
            iteration: completed optimizer steps.

        Returns:
            Iterations; 0 where none begins.
        """
        if iteration < self.first:
            return 0
        start = float(self.first)
        while round(start) < iteration:
            start *= self.growth
        return self.period if round(start) == iteration else 0


class Losses(NamedTuple):
    """Of one arm after a trial."""

    end: float  # at its parameters
    average: float  # at their average over the second half


@dataclass(frozen=True)
class TrialOutcome(Rule):
    """The arm that a trial speaks for, for all units; see the module.

    A loss that is not finite counts as infinite.
    """

    first: Losses
    second: Losses
    incumbent: Choice
    before: float = np.nan  # loss as the trial began; NaN: no margin
    name: ClassVar[str] = "trial"

    @property
    def needs_lipschitz(self) -> bool:
        """It does not."""
        return False

    @property
    def winner(self) -> Choice:
        """The arm that goes on."""
        first, second = np.nan_to_num([self.first, self.second], nan=np.inf)
        mine, other = (first, second) if self.incumbent is Choice.FIRST else (second, first)
        descent = self.before - mine[0]
        lead = MARGIN * descent if 0 < descent < np.inf else 0.0
        if not ((other < mine) & (other <= mine - lead)).all():
            return self.incumbent
        return Choice.SECOND if self.incumbent is Choice.FIRST else Choice.FIRST

    def ratio(self, evidence: Evidence) -> Ratio:
        """All or nothing."""
        value = np.inf if self.winner is Choice.FIRST else 0.0
        ratio = np.full(len(evidence.names), value)
        return Ratio(ratio, ratio)

    def cause(self, evidence: Evidence, index: int) -> str:  # noqa: ARG002
        """Both losses."""
        return self.reason

    @property
    def reason(self) -> str:
        """Both losses, in words."""
        return (
            f"in a trial, the loss went to {self.first.end:.4g} by the first optimizer and to "
            f"{self.second.end:.4g} by the second, {self.first.average:.4g} and "
            f"{self.second.average:.4g} at averaged parameters"
        )


def judge(
    iteration: int,
    names: Sequence[str],
    numel: ArrayLike,
    *,
    first: Losses,
    second: Losses,
    incumbent: Choice,
    before: float = np.nan,
) -> Recommendation:
    """Decide a trial.

    Args:
        iteration: completed optimizer steps.
        names: of the units that may switch.
        numel: their sizes.
        first: of the first arm.
        second: of the second.
        incumbent: the arm that stepped before it.
        before: loss as it began; NaN: any lead will do.

    Returns:
        The winner for every unit.
    """
    rule = TrialOutcome(first, second, incumbent, before)
    evidence = Evidence.none(iteration, names, numel)
    low, high = rule.ratio(evidence)
    return Recommendation(
        rule=rule,
        evidence=evidence,
        low=low,
        high=high,
        choice=np.full(len(names), rule.winner, np.int8),
        stable_for=np.zeros(len(names), np.int64),
    )
