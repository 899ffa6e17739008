"""The finished runs of an experiment: a file of JSON lines, one run each, known by name.

Several processes may append to one file.
"""

import json
from pathlib import Path
from typing import Any

Run = dict[str, Any]


def read(path: Path) -> dict[str, Run]:
    """Read all runs, by name; none where there is no file yet."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {run.pop("name"): run for run in map(json.loads, lines)}


def append(path: Path, name: str, run: Run) -> None:
    """Add a run; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, **run}) + "\n")
