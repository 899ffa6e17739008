"""What ELMO or FOSI chose for the eigenpairs, and why, rebuilt from the run file.

A reason follows from the recorded L, λ and 3λ²/γ, the last of the very gradient that was stepped
on, by the rule in the root attribute ``pair_rule``.  Pairs are places on the pair axis: the n-th of
one measurement need not continue the n-th of the one before, which ``match`` tells.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lipprof.advice import Advisor, Choice, Evidence, Recommendation, Rule, rule_of
from lipprof.errors import ConfigError
from lipprof.record.measurement import LIPSCHITZ

if TYPE_CHECKING:
    from lipprof.record.reader import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedPairSwitch:
    """ELMO or FOSI got another answer for a pair than the last one, first-order at the start."""

    iteration: int  # of the measurement
    pair: int  # its position in ``pair_labels``
    name: str
    before: Choice
    to: Choice
    reason: str


def pair_assignment_changes(run: "Run") -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find where the answer for a pair differs from the last one; see ``RecordedPairSwitch``.

    Args:
        run: the run.

    Returns:
        Positions of measurements and of pairs, one of each per switch, in the order of time.
    """
    chosen = run["pair_assigned"]
    start = np.full((1, chosen.shape[1]), Choice.FIRST, np.int8)
    answers = np.concatenate([start, chosen])
    row = np.arange(len(answers))[:, None]
    last = np.maximum.accumulate(np.where(answers == Choice.NONE, 0, row))
    before = np.take_along_axis(answers, last, axis=0)[:-1]
    rows, pairs = np.nonzero((chosen != Choice.NONE) & (chosen != before))
    return rows, pairs


def recorded_pair_switches(run: "Run", latest: int | None = None) -> list[RecordedPairSwitch]:
    """List what the rule of ELMO or FOSI moved, with the reasons, in the order of time.

    Args:
        run: the run.
        latest: how many of the latest; None: all.

    Returns:
        One entry per pair that moved.
    """
    rows, pairs = pair_assignment_changes(run)
    first = 0 if latest is None else max(0, len(rows) - latest)
    switches = []
    for row, pair in zip(rows[first:].tolist(), pairs[first:].tolist(), strict=True):
        to = Choice(int(run["pair_assigned"][row, pair]))
        switches.append(
            RecordedPairSwitch(
                iteration=int(run["iteration"][row]),
                pair=pair,
                name=run.pair_labels[pair],
                before=to.other,
                to=to,
                reason=_reason(run, row, pair, to),
            )
        )
    return switches


def _reason(run: "Run", row: int, pair: int, to: Choice) -> str:
    """Why a pair moved; where its numbers are not in the file, by what rule."""
    text = run.attrs.get("pair_rule")
    if not text:
        return "the rule was not recorded"
    try:
        rule = rule_of(text)
    except ConfigError:  # one of the user's own
        return f"by rule {text}"
    if not rule.needs_lipschitz:
        return f"by rule {text}"
    lent = np.flatnonzero(run["converged"][row] == 1)
    answer, index = _answer(run, rule, row, lent), int(np.searchsorted(lent, pair))
    agrees = pair in lent and answer.choice[index] == to
    return answer.reason(index) if agrees else f"not by rule {text} on the recorded numbers"


def _answer(run: "Run", rule: Rule, row: int, lent: NDArray[np.intp]) -> Recommendation:
    """Ask the rule again for the pairs that were lent at a measurement."""
    names = [f"eigenspace {i + 1}" for i in range(len(lent))]
    evidence = Evidence.exact(
        int(run["iteration"][row]),
        names,
        [1] * len(lent),
        lipschitz=run[LIPSCHITZ[run.settings.lipschitz[0]]][row, lent],
        threshold=run["pair_threshold"][row, lent],
        curvature=run["eigenvalue"][row, lent],
        slope=np.full(len(lent), np.nan),
    )
    return Advisor(names, rule=rule).advise(evidence)
