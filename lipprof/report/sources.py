"""Where the measured loss came from, if that changed during a run: how often, when and why."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lipprof.record import ENGINES, SOURCES, Run, Status
from lipprof.report.formats import printable

LISTED = 4  # iterations of a way that are named

_WORDS = {
    "closure": "the loss closure",
    "replay": "replay",
    "live": "the live graph",
    "hooks": "the optimizer's hooks alone",
}


@dataclass(frozen=True, slots=True)
class Way:
    """One way to measure, and when it served."""

    name: str
    iterations: tuple[int, ...]
    to_the_end: bool  # whether all later measurements were made this way
    reason: str  # why the way before it ended; empty: unknown, or it was the first


def ways(run: Run) -> list[Way]:
    """Find the ways that served.

    Returns:
        Them, in the order in which they came up; what failed before anything was seen has none.
    """
    iteration, reasons, failed = run["iteration"], run["reason"], run["status"] == Status.FAILED
    source, differences = run["source"], run["engine"] == ENGINES.index("differences")
    known = np.flatnonzero((source > 0) & (source < len(SOURCES)))
    names = {at: _name(SOURCES[source[at]], bool(differences[at])) for at in known}
    found = []
    for name in dict.fromkeys(names.values()):
        own = [at for at in known if names[at] == name]
        before = own[0] - 1 if found else -1
        closing = own[0] if failed[own[0]] else before
        found.append(
            Way(
                name,
                tuple(int(iteration[at]) for at in own),
                all(names[at] == name for at in known if at >= own[0]),
                reasons[closing] if found and failed[closing] else "",
            )
        )
    return found


def source_sentence(found: Sequence[Way]) -> str | None:
    """Say how many measurements each way served, and why it changed; None where there was one."""
    if len(found) < 2:
        return None
    total = sum(len(way.iterations) for way in found)
    first, *rest = found
    parts = [f"{first.name} {len(first.iterations):,} of {total:,}"]
    parts += [f"{way.name} {len(way.iterations):,} ({_when(way)})" for way in rest]
    return f"Measured by {', '.join(parts)}."


def _name(source: str, differences: bool) -> str:
    words = _WORDS[source]
    if not differences or source == "hooks":
        return words
    return f"central differences of the {'step' if source == 'replay' else 'closure'}'s gradient"


def _when(way: Way) -> str:
    shown = ", ".join(f"{i:,}" for i in way.iterations[:LISTED])
    if way.to_the_end and len(way.iterations) > 1:
        when = f"from iteration {way.iterations[0]:,} on"
    elif len(way.iterations) == 1:
        when = f"iteration {shown}"
    else:
        more = "" if len(way.iterations) <= LISTED else ", ..."
        when = f"iterations {shown}{more}"
    return f"{when}: {printable(way.reason, 160)}" if way.reason else when
