"""What the live dashboard shows, as components of Dash: one run, several runs, the list of runs.

Text is React's, which escapes; figures are those of the page.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipprof.errors import RunFileError
from lipprof.record import open_run
from lipprof.record.extras import require
from lipprof.report import derived, html
from lipprof.report.comparison.compare import By
from lipprof.report.comparison.figures import comparison_panels
from lipprof.report.formats import number, percent, plural, printable
from lipprof.report.live.shelf import Snapshot
from lipprof.report.sections import Panel, sections
from lipprof.report.summary import failure_lines, sentences, summarize
from lipprof.report.tensors import Side, TensorRow, by_side, tensor_rows

ROWS_PER_SIDE = 8


class Views:
    """Builds components.

    Raises:
        MissingExtraError: dash is not installed.
    """

    def __init__(self) -> None:
        self.html: Any = require("dash.html", "live")
        self.dcc: Any = require("dash.dcc", "live")

    def run(self, path: Path) -> list[Any]:
        """Show one run: its sentences, the decisive tensors, the sections of the page."""
        try:
            with open_run(path) as run:
                position = derived.latest(run)
                facts = summarize(run, position)
                parts = self._said(sentences(facts))
                parts += [self.html.P(line) for line in failure_lines(facts)]
                if position is None:
                    return parts
                if facts.recommendation is not None:
                    rows = tensor_rows(facts.recommendation, run["assigned"][position])
                    parts.append(self._tensors(by_side(rows, ROWS_PER_SIDE), run.unit_kind))
                for section in sections(run, position):
                    parts.append(self.html.H2(section.question))
                    parts += [self._figure(panel, str(path)) for panel in section.panels]
                return parts
        except RunFileError as error:
            return self.problem(str(error))

    def comparison(self, runs: Sequence[Snapshot], by: By) -> list[Any]:
        """Show several runs over each other."""
        tracks = [run.track for run in runs if run.track is not None]
        panels = comparison_panels(tracks, by)
        if not panels:
            return self.problem("Nothing was measured in these runs yet.")
        parts = [self.html.H2(f"{plural(len(tracks), 'run')} by {by.value}")]
        return parts + [self._figure(panel, by.value) for panel in panels]

    def option(self, run: Snapshot) -> dict[str, Any]:
        """One line of the list of runs."""
        state = self.html.Span(run.state, className="state")
        label = self.html.Span([self.html.B(run.name), " ", state])
        return {"label": label, "value": str(run.path), "disabled": run.track is None}

    def problem(self, text: str) -> list[Any]:
        """Show a sentence in place of figures."""
        return [self.html.P(printable(text), className="lead")]

    def _said(self, lines: Sequence[str]) -> list[Any]:
        first, *rest = lines
        return [self.html.H1(first), *(self.html.P(line, className="lead") for line in rest)]

    def _tensors(self, sides: Sequence[Side], unit_kind: str) -> Any:
        heads = (unit_kind, "optimizer", "share", "L", "limit", "why")
        body = []
        for side in sides:
            body += [self._tensor(row) for row in side.shown]
            if side.omitted:
                more = f"and {side.omitted:,} more {side.choice.label}"
                cells = [self.html.Td(more, colSpan=2), self.html.Td(percent(side.omitted_share))]
                body.append(self.html.Tr(cells))
        head = self.html.Thead(self.html.Tr([self.html.Th(name) for name in heads]))
        table = self.html.Table([head, self.html.Tbody(body)])
        return self.html.Div(table, className="scroll")

    def _tensor(self, row: TensorRow) -> Any:
        choice = self.html.B(row.choice.label, className=f"choice {row.choice.name.lower()}")
        numbers = (percent(row.share), row.lipschitz_text, number(row.threshold))
        return self.html.Tr([
            self.html.Th(printable(row.name, 60), scope="row"),
            self.html.Td(choice),
            *(self.html.Td(text, className="num") for text in numbers),
            self.html.Td(row.reason, className="why"),
        ])

    def _figure(self, panel: Panel, revision: str) -> Any:
        """Draw a panel; what the user zoomed stays until ``revision`` changes."""
        panel.figure.update_layout(uirevision=revision)
        caption = [self.html.H3(panel.title), self.html.P(panel.reading, className="reading")]
        height = panel.figure.layout.height
        graph = self.dcc.Graph(
            id=f"{panel.id}-graph",
            figure=panel.figure,
            config=html.CONFIG,
            style={"height": f"{height}px"},
        )
        return self.html.Figure([self.html.Figcaption(caption), graph])
