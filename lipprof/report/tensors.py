"""The answer as rows: one per tensor, with its reason; and which rows to show when there are many.

Decisive are the largest tensors of either side: they hold the parameters that the answer is about.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lipprof.advice import MOSTLY_NOISE, Choice, Recommendation
from lipprof.report.formats import number

ORDER = (Choice.FIRST, Choice.SECOND, Choice.NONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRow:
    """One tensor's answer.  Units as in the run file."""

    name: str
    numel: int
    share: float  # of all profiled parameters
    choice: Choice
    assigned: Choice  # what AMOS ran; NONE: the optimizer is not AMOS
    lipschitz: float
    lipschitz_upper: float
    noise: float  # its share in the mean squared drift
    threshold: float
    curvature: float
    slope: float
    stable_for: int  # measurements since the choice last changed
    reason: str

    @property
    def lipschitz_text(self) -> str:
        """L, or where it is mostly noise the bound that is left of it."""
        if self.noise > MOSTLY_NOISE:
            return f"≤ {number(self.lipschitz_upper)}"
        return number(self.lipschitz)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The tensors with one choice: the largest, and how much is left out."""

    choice: Choice
    shown: tuple[TensorRow, ...]
    count: int
    share: float
    omitted: int
    omitted_share: float


def tensor_rows(
    recommendation: Recommendation, assigned: Sequence[int] | None = None
) -> list[TensorRow]:
    """Turn a recommendation into rows.

    Args:
        recommendation: the answer.
        assigned: codes of what AMOS ran, (T,).

    Returns:
        One row per tensor in flat order.
    """
    evidence, threshold = recommendation.evidence, recommendation.threshold
    noise = evidence.noise
    total = max(1, int(np.sum(recommendation.numel)))
    return [
        TensorRow(
            name=name,
            numel=int(recommendation.numel[i]),
            share=int(recommendation.numel[i]) / total,
            choice=Choice(int(recommendation.choice[i])),
            assigned=Choice(int(assigned[i])) if assigned is not None else Choice.NONE,
            lipschitz=float(evidence.lipschitz[i]),
            lipschitz_upper=float(evidence.lipschitz_upper[i]),
            noise=float(noise[i]),
            threshold=float(threshold[i]),
            curvature=float(evidence.curvature[i]),
            slope=float(evidence.slope[i]),
            stable_for=int(recommendation.stable_for[i]),
            reason=recommendation.reason(i),
        )
        for i, name in enumerate(recommendation.names)
    ]


def by_side(rows: Sequence[TensorRow], limit: int | None = None) -> list[Side]:
    """Group rows by choice, the largest tensors first.

    Args:
        rows: of all tensors.
        limit: rows to show of each choice; None: all.

    Returns:
        The choices that occur: first-order, second-order, none yet.
    """
    sides = []
    for choice in ORDER:
        mine = sorted((r for r in rows if r.choice is choice), key=lambda r: -r.numel)
        if not mine:
            continue
        shown, rest = mine[:limit], mine[len(mine[:limit]) :]
        sides.append(
            Side(
                choice=choice,
                shown=tuple(shown),
                count=len(mine),
                share=sum(r.share for r in mine),
                omitted=len(rest),
                omitted_share=sum(r.share for r in rest),
            )
        )
    return sides
