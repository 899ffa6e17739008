"""Figures in pieces: the layout and every trace as JSON under the name of its hash.

A browser keeps the pieces that it shows and names them with its next question, so that a
measurement of one run among twenty sends one line of every figure and not all lines again.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
from plotly.io.json import to_json_plotly

from lipprof.report.comparison.figures import Overlay
from lipprof.report.figures.theme import Trace

HASH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Drawing:
    """Figures as names of pieces, the layout first, and what the names stand for."""

    figures: dict[str, list[str]] = field(default_factory=dict)
    pieces: dict[str, str] = field(default_factory=dict)

    def add(self, id_: str, parts: Iterable[str]) -> None:
        """Add a figure whose layout and traces are JSON already."""
        named = [(name_of(part), part) for part in parts]
        self.pieces.update(named)
        self.figures[id_] = [name for name, _ in named]

    def lacking(self, held: Iterable[str]) -> dict[str, str]:
        """The pieces that a browser which holds some does not have."""
        known = set(held)
        return {name: piece for name, piece in self.pieces.items() if name not in known}


class Cutter:
    """Cuts comparisons into pieces; lines that it has seen before are not written again."""

    def __init__(self) -> None:
        self._lines: dict[int, tuple[Trace, str]] = {}  # by identity; the trace keeps its id taken

    def overlays(self, overlays: Iterable[Overlay], near: Collection[str]) -> Drawing:
        """Cut the wanted figures of several runs; most did not change since the last time."""
        drawing, lines = Drawing(), {}
        for overlay in overlays:
            if overlay.frame.id not in near:
                continue
            for line in overlay.lines:
                lines[id(line)] = self._lines.get(id(line)) or (line, cut(go.Figure([line]))[1])
            texts = [lines[id(line)][1] for line in overlay.lines]
            drawing.add(overlay.frame.id, [*cut(overlay.frame.figure), *texts])
        self._lines = lines
        return drawing


def name_of(text: str) -> str:
    """Name a text by its hash."""
    return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).hexdigest()


def cut(figure: go.Figure) -> list[str]:
    """Write the layout and every trace of a figure as JSON."""
    written: Mapping[str, Any] = figure.to_dict()
    return [_json(written["layout"]), *map(_json, written["data"])]


def _json(value: Any) -> str:
    return to_json_plotly(value) or ""
