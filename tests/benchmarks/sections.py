"""What a section of the benchmark is: rows that it measures, and the columns they are shown in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """What the command line asks for."""

    device: str = "cpu"
    quick: bool = False
    data: Path | None = None
    say: Callable[[str], None] = field(default=lambda _: None)  # progress

    def repetitions(self, usual: int) -> int:
        return min(usual, 3) if self.quick else usual


@dataclass(frozen=True, slots=True)
class Column:
    """A field of the rows: its heading, and how its values are written."""

    key: str
    heading: str
    show: Callable[[Any], str] = str

    def cell(self, row: Row) -> str:
        value = row.get(self.key)
        return "" if value is None else self.show(value)


@dataclass(frozen=True, slots=True)
class Section:
    """``measure(setting, subject)`` gives the rows of one subject, a problem as a rule."""

    name: str
    title: str
    legend: str
    columns: tuple[Column, ...]
    subjects: tuple[str, ...]
    measure: Callable[[Setting, str], list[Row]]


# ------------------------------------------------------------------ how values are written


def number(value: float) -> str:
    """Three digits."""
    if value != value:
        return "NaN"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def scientific(value: float) -> str:
    return f"{value:.1e}"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def megabytes(value: float) -> str:
    return f"{value / 1e6:,.1f} MB"


def spread(value: dict[str, float]) -> str:
    """A summary: median and quartiles."""
    if value["repetitions"] == 1:
        return number_of(value["median"])
    low, high = number_of(value["low"]), number_of(value["high"])
    return f"{number_of(value['median'])} ({low} to {high})"


def number_of(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
