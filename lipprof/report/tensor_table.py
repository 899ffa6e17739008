"""The tensors in a terminal: numbers and reason of each, in the layout that the width allows."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lipprof.advice import Choice, Rule
from lipprof.report.formats import number, percent, plural, printable
from lipprof.report.tensors import Side, TensorRow

ROWS_PER_SIDE = 8
WIDE = 116  # columns from which the reason fits beside the numbers
STYLE = {Choice.FIRST: "dark_orange", Choice.SECOND: "dodger_blue2", Choice.NONE: "dim"}


class TensorTable:
    """Every shown tensor with its numbers and its reason, grouped by choice.

    Wide terminals have the reason in a column, narrow ones below the name.
    """

    def __init__(self, sides: list[Side], rule: Rule, unit_kind: str) -> None:
        self.sides, self.unit_kind = sides, unit_kind
        self.threshold = rule.threshold_name.removeprefix("the ")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:  # noqa: ARG002
        wide = options.max_width >= WIDE
        table = plain_table()
        table.add_column(self.unit_kind, ratio=12)
        threshold = [self.threshold] if wide and self.threshold else []
        for header in ("share", "L", *threshold, "λ", "γ", "held"):
            table.add_column(header, justify="right", no_wrap=True)
        if wide:
            table.add_column("why", ratio=11)
        for side in self.sides:
            for cells in self._rows(side, wide):
                table.add_row(*cells)
        yield table

    def _rows(self, side: Side, wide: bool) -> Iterable[list[RenderableType]]:
        style = f"bold {STYLE[side.choice]}"
        title = f"{side.choice.label}: {plural(side.count, self.unit_kind)}"
        yield [Text(title, style=style), Text(percent(side.share), style=style)]
        for row in side.shown:
            yield _wide_row(row, bool(self.threshold)) if wide else _narrow_row(row)
        if side.omitted:
            note = f"  and {side.omitted:,} more (--all)"
            yield [Text(note, style="dim"), Text(percent(side.omitted_share), style="dim")]


def _wide_row(row: TensorRow, threshold: bool) -> list[RenderableType]:
    name = Text(f"  {printable(row.name, 40)}")
    compared = [row.threshold] if threshold else []
    numbers = map(number, (*compared, row.curvature, row.slope))
    cells = [percent(row.share), row.lipschitz_text, *numbers, str(row.stable_for)]
    return [name, *cells, Text(row.reason, style="dim")]


def _narrow_row(row: TensorRow) -> list[RenderableType]:
    reason = Padding(Text(row.reason, style="dim"), (0, 0, 0, 2))
    name = Group(Text(f"  {printable(row.name, 34)}"), reason)
    numbers = map(number, (row.curvature, row.slope))
    return [name, percent(row.share), row.lipschitz_text, *numbers, str(row.stable_for)]


def plain_table() -> Table:
    """Start a table without rules, headings dim."""
    return Table(box=None, padding=(0, 1, 0, 0), header_style="dim", expand=False)
