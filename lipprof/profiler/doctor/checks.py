"""One line of what the doctor finds."""

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """Outcome of a check."""

    OK = "ok"
    NOTE = "note"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried."""

    name: str
    state: State
    text: str
