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

* Losses of arms that have trained side by side from the first step on do not tell who is better:
  the first 60 steps of AdamW are slow on some seeds, and whatever is beside it looks good.

Measured on a character GPT of 110,464 parameters over 1,000 steps, AdamW beside Muon, SOAP,
Sophia-G and SGD at a good learning rate and 4 and 16 times below and above it: 20 cells.  A trial
from AdamW's state chooses an arm that is worse in the end by more than 0.02, mean of two seeds, in
3 of them from iteration 40 to 80 and in 2 from 60 to 100 or 40 to 100, by 0.008, 0.004 and 0.004 on
average over all cells.  By losses after 60 steps side by side it was 7, by up to 0.17 (two to five
seeds).  On a smaller GPT a challenger that had to be ahead by a margin already in the first trial
was refused in five runs of eight where it was the better arm.

Later trials, at 3.6 to 5 times the iteration, have not helped: of 9 at iteration 300 of the same
GPT none brought the better arm back, and one lost it; on a smaller one, one of 64 gained.
"""

import math
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

    A trial costs one more forward and backward for each of its iterations, and the side-by-side
    running of both up to the end of the first one as much again: as it stands 140, 5 % of a run of
    2,800.

    Attributes:
        first: completed iterations before the first one.
        period: length of each.
        growth: each later one begins at this multiple of the iteration at which the one before
            ended; infinite: there is none.

    Raises:
        ConfigError: a value out of range.
    """

    first: int = 60
    period: int = 40
    growth: float = math.inf

    def __post_init__(self) -> None:
        whole = all(isinstance(n, int) for n in (self.first, self.period))
        if not whole or not self.first >= 0 or not self.period >= 2 or not self.growth >= 1:
            raise ConfigError(
                f"Got {self}: expected whole numbers first >= 0 and period >= 2, and growth >= 1."
            )

    def after(self, iteration: int) -> float:
        """When the trial begins that follows one.

        Args:
            iteration: completed iterations as that ended.

        Returns:
            The number of completed iterations; infinite where none follows.
        """
        return math.inf if math.isinf(self.growth) else round(self.growth * iteration)


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
