"""Results on disk: one JSON file per device, and the same as tables in README.md.

A part is one section on one subject.  Parts are replaced one by one, so that a benchmark may be run
bit by bit; each keeps the circumstances under which it was measured.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.benchmarks.sections import Row, Section

BEGIN, END = "<!-- results {}: begin -->", "<!-- results {}: end -->"


@dataclass(frozen=True, slots=True)
class Part:
    """What was measured, and how."""

    section: str
    subject: str
    rows: list[Row]
    circumstances: dict[str, str]  # device, versions, date, command

    @property
    def key(self) -> str:
        return f"{self.section}/{self.subject}"


def read(path: Path) -> dict[str, Part]:
    if not path.exists():
        return {}
    return {key: Part(**part) for key, part in json.loads(path.read_text()).items()}


def write(path: Path, parts: dict[str, Part]) -> None:
    content = {key: asdict(part) for key, part in parts.items()}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def in_order(section: Section, parts: dict[str, Part]) -> list[Part]:
    """The parts of a section that there are."""
    keys = (f"{section.name}/{subject}" for subject in section.subjects)
    return [parts[key] for key in keys if key in parts]


def rich_table(section: Section, parts: Sequence[Part]) -> Table:
    rows = [row for part in parts for row in part.rows]
    table = Table(title=section.title, title_justify="left")
    for column in section.columns:
        if any(column.cell(row) for row in rows):
            table.add_column(column.heading, overflow="fold")
    for part in parts:
        for row in part.rows:
            cells = [c.cell(row) for c in section.columns if any(c.cell(r) for r in rows)]
            table.add_row(*cells)
        table.add_section()
    return table


def markdown_table(section: Section, parts: Sequence[Part]) -> str:
    rows = [row for part in parts for row in part.rows]
    columns = [c for c in section.columns if any(c.cell(row) for row in rows)]
    lines = [[c.heading for c in columns], ["---"] * len(columns)]
    lines += [[c.cell(row).replace("|", "\\|") for c in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def markdown(sections: Iterable[Section], parts: dict[str, Part]) -> str:
    """All tables, with what each rests on."""
    blocks = []
    problems: dict[str, str] = {}
    for section in sections:
        present = in_order(section, parts)
        if not present:
            continue
        problems |= {
            row["problem"]: row["data"] for part in present for row in part.rows if "data" in row
        }
        blocks += [f"### {section.title}", section.legend, markdown_table(section, present)]
        blocks.append("\n".join(_circumstances(present)))
    listing = "\n".join(f"- **{name}**: {description}" for name, description in problems.items())
    return "\n\n".join([listing, *blocks])


def _circumstances(parts: Sequence[Part]) -> list[str]:
    """One line for the parts that were measured under the same circumstances."""
    groups: dict[str, list[str]] = {}
    for part in parts:
        text = ", ".join(part.circumstances.values())
        count = repetitions(part.rows)
        groups.setdefault(text, []).append(
            f"{part.subject} ({count} repetitions)" if count else part.subject
        )
    return [f"- {', '.join(subjects)}: {text}." for text, subjects in groups.items()]


def repetitions(rows: Iterable[Row]) -> int:
    """The most that any figure rests on; 0 where none says."""
    summaries: list[Any] = [v for row in rows for v in row.values() if isinstance(v, dict)]
    return max((summary["repetitions"] for summary in summaries), default=0)


def replace_between(text: str, device: str, content: str) -> str:
    """Put content between the markers of a device, which are appended where there are none."""
    begin, end = BEGIN.format(device), END.format(device)
    block = f"{begin}\n{content}\n{end}"
    if begin not in text or end not in text:
        return f"{text.rstrip()}\n\n## Results: {device}\n\n{block}\n".lstrip()
    head, rest = text.split(begin, 1)
    return f"{head}{block}{rest.split(end, 1)[1]}"
