"""Several run files: which there are in a folder, what to call them, and which can be read."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lipprof.errors import RunFileError
from lipprof.record import Run, open_run
from lipprof.report.formats import one_line, printable

PATTERNS = ("*.h5", "*/*.h5")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that cannot be read as a run."""

    path: Path
    reason: str


def find_runs(places: Sequence[Path]) -> list[Path]:
    """List run files, each once.

    Args:
        places: files as they are; of folders, the ``*.h5`` in them and in their subfolders.

    Returns:
        Paths in the order given, those of a folder by name.
    """
    found: dict[Path, Path] = {}
    for place in places:
        inside = [path for pattern in PATTERNS for path in place.glob(pattern)]
        for path in sorted(inside) if place.is_dir() else [place]:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def short_names(paths: Sequence[Path]) -> list[str]:
    """Name files by as little of the end of their path as tells them apart.

    Args:
        paths: different files.

    Returns:
        Printable names without suffix: ``run``, or ``adam/run`` and ``amos/run``.
    """
    parts = [path.absolute().with_suffix("").parts for path in paths]
    names = []
    for mine in parts:
        length = 1
        while length < len(mine) and sum(p[-length:] == mine[-length:] for p in parts) > 1:
            length += 1
        names.append(printable("/".join(mine[-length:])))
    return names


def open_readable(paths: Sequence[Path], stack: ExitStack) -> tuple[list[Run], list[LeftOut]]:
    """Open what can be opened.

    Args:
        paths: run files.
        stack: closes the runs.

    Returns:
        The runs in order, and the others with the reason.
    """
    runs, left_out = [], []
    for path in paths:
        try:
            run = stack.enter_context(open_run(path))
            _ = run.settings  # what needs them later must not fail for one run among many
        except RunFileError as error:
            left_out.append(LeftOut(path, one_line(error)))
        else:
            runs.append(run)
    return runs, left_out
