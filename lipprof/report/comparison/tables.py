"""A comparison in a terminal: where the runs stand, then in what they differ."""

from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lipprof.report import derived
from lipprof.report.comparison.compare import Comparison, Difference, sentences
from lipprof.report.formats import MISSING, number, percent, plural, printable
from lipprof.report.tables import SHARES, UNCONVERGED
from lipprof.report.tensor_table import plain_table

TENSORS = 10  # that are named
NAME = 28  # characters


def comparison_report(comparison: Comparison, *, every_tensor: bool = False) -> RenderableType:
    """Build the whole comparison.

    Args:
        comparison: the runs.
        every_tensor: name every tensor that differs.

    Returns:
        A renderable.
    """
    first, *rest = sentences(comparison)
    text = Text(first, style="bold")
    for sentence in rest:
        text.append(f"\n{sentence}", style="not bold")
    for out in comparison.left_out:
        text.append(f"\n{printable(out.path)} is left out: {out.reason}", style="not bold red")
    parts: list[RenderableType] = [text, standing_table(comparison)]
    parts.append(
        _difference_table("settings", comparison.names, comparison.settings)
        if comparison.settings
        else Text("The settings are the same.")
    )
    shown = comparison.tensors if every_tensor else comparison.tensors[:TENSORS]
    if shown:
        parts.append(_difference_table("parameters of", comparison.names, shown))
    else:
        parts.append(Text("The tensors are the same."))
    if omitted := len(comparison.tensors) - len(shown):
        parts.append(Text(f"and {plural(omitted, 'tensor')} more (--all)", style="dim"))
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts))


def standing_table(comparison: Comparison) -> Table:
    """Show one line per run: its measurement at the common point, and the value of every series."""
    table = plain_table()
    table.add_column(f"by {comparison.by.value}", overflow="fold")
    table.add_column("at", justify="right", no_wrap=True)
    for label in labels(comparison):
        table.add_column(label, justify="right")
    for name, cells in standing(comparison):
        table.add_row(Text(printable(name, NAME)), *cells)
    return table


def labels(comparison: Comparison) -> list[str]:
    """The series that any of the runs has, in the order of ``derived.key_series``."""
    every = [list(derived.key_series(run)) for run in comparison.runs]
    return max(every, key=len, default=[])


def standing(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Write where every run stands: its name, the iteration, and the value of every series."""
    rows = []
    for run, name, position in zip(
        comparison.runs, comparison.names, comparison.positions, strict=True
    ):
        if position is None:
            cells = [MISSING] * (1 + len(labels(comparison)))
        else:
            series = derived.key_series(run)
            cells = [f"{run['iteration'][position]:,}"]
            cells += [_cell(label, series.get(label), position) for label in labels(comparison)]
        rows.append((name, cells))
    return rows


def _cell(label: str, series: derived.Series | None, position: int) -> str:
    if series is None or np.isnan(series.values[position]):
        return MISSING
    mark = "" if series.converged[position] else UNCONVERGED
    return mark + (percent if label in SHARES else number)(float(series.values[position]))


def _difference_table(title: str, names: Sequence[str], rows: Sequence[Difference]) -> Table:
    table = plain_table()
    table.add_column(title, overflow="fold")
    for name in names:
        table.add_column(Text(printable(name, NAME)), overflow="fold")
    for row in rows:
        table.add_row(Text(printable(row.name, 40)), *(Text(v or MISSING) for v in row.values))
    return table
