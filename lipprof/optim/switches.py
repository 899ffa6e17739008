"""A change of sides, as it is kept and logged."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from lipprof.advice import Choice, Recommendation

logger = logging.getLogger("lipprof")


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One unit changed sides: a tensor, module or chunk of AMOS, or an eigenspace."""

    iteration: int  # completed optimizer steps
    name: str
    choice: Choice
    reason: str


Plain = list[tuple[int, str, int, str]]


def plain(switches: Iterable[Switch]) -> Plain:
    """Write switches as plain types, for a state_dict."""
    return [(s.iteration, s.name, int(s.choice), s.reason) for s in switches]


def from_plain(written: Plain) -> list[Switch]:
    """Read what ``plain`` wrote."""
    return [
        Switch(iteration=iteration, name=name, choice=Choice(choice), reason=reason)
        for iteration, name, choice, reason in written
    ]


def announced(recommendation: Recommendation, index: int) -> Switch:
    """Log the switch that a recommendation asks of one unit.

    Args:
        recommendation: the recommendation.
        index: of the unit.

    Returns:
        The switch.
    """
    switch = Switch(
        iteration=recommendation.iteration,
        name=recommendation.names[index],
        choice=Choice(int(recommendation.choice[index])),
        reason=recommendation.reason(index),
    )
    logger.info(
        "iteration %d: %s to the %s optimizer: %s",
        switch.iteration,
        switch.name,
        switch.choice.label,
        switch.reason,
    )
    return switch
