"""The runs of a file or folder as they are now, read again only where a file changed.

No file stays open: a reader's lock would keep a resumed run from writing.  A file counts as changed
when its identity, size, time of change or writer did; one that changed while it was being read is
read again, since clocks of file systems are coarse.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from lipprof.errors import RunFileError
from lipprof.record import Run, open_run
from lipprof.record.files import has_writer
from lipprof.report import derived
from lipprof.report.comparison.figures import Track, track
from lipprof.report.formats import number, one_line
from lipprof.report.library import find_runs, short_names
from lipprof.report.progress import progress

COARSEST_CLOCK = 0.1  # s, of a file system's time of change


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One file as it was when last read."""

    path: Path
    name: str
    version: tuple[Any, ...]  # unequal when what is shown may differ
    state: str  # in words; why it cannot be read where it cannot
    track: Track | None  # None: it cannot be read


@dataclass(frozen=True, slots=True)
class _Seen:
    signature: tuple[Any, ...]
    settled: bool
    snapshot: Snapshot


class Shelf:
    """Snapshots of the run files of one place.

    Args:
        place: a run file, which need not exist yet, or a folder.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._seen: dict[Path, _Seen] = {}
        self._lock = Lock()

    def look(self) -> list[Snapshot]:
        """Read what changed since the last look.

        Returns:
            One snapshot per file, those that cannot be read too.
        """
        with self._lock:
            paths = find_runs([self.place])
            names = short_names(paths)
            self._seen = {p: self._see(p, name) for p, name in zip(paths, names, strict=True)}
            return [seen.snapshot for seen in self._seen.values()]

    def _see(self, path: Path, name: str) -> _Seen:
        before = self._seen.get(path)
        signature = _signature(path)
        if (
            before is not None
            and before.settled
            and before.signature == signature
            and before.snapshot.name == name
        ):
            return before
        changed = signature[1] / 1e9 if signature else 0.0
        settled = time.time() - changed > COARSEST_CLOCK
        return _Seen(signature, settled, _read(path, name, signature))


def newest(snapshots: Sequence[Snapshot]) -> Snapshot | None:
    """Choose the run that was measured last; None where none can be read."""
    readable = [s for s in snapshots if s.track is not None]
    return max(readable, key=lambda s: s.version[1], default=None)


def _signature(path: Path) -> tuple[Any, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_ino, status.st_mtime_ns, status.st_size, has_writer(path))


def _read(path: Path, name: str, signature: tuple[Any, ...]) -> Snapshot:
    try:
        with open_run(path) as run:
            version = (path, *signature[1:], len(run), run.finished, name)
            described = _describe(run)
            return Snapshot(
                path=path, name=name, version=version, state=described, track=track(run, name)
            )
    except RunFileError as error:
        reason = one_line(error)
        if not signature:
            reason = "there is no such file yet"
        return Snapshot(path=path, name=name, version=(path, reason), state=reason, track=None)


def _describe(run: Run) -> str:
    """State and latest numbers of a run, in a line."""
    where = progress(run, time.time())
    words = [where.state.value]
    if where.iteration is not None:
        words.append(f"iteration {where.iteration:,}")
    last = derived.latest(run)
    if last is not None:
        series = derived.key_series(run)
        for label in ("loss", "λ largest"):
            if label in series and np.isfinite(value := float(series[label].values[last])):
                words.append(f"{label} {number(value)}")
    elif len(run):
        words.append("all measurements failed")
    return " · ".join(words)
