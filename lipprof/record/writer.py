"""Append measurements to a run file so that kill -9 at any moment loses at most the row in flight.

The order of an append is the whole guarantee: grow, write, flush; then ``n_valid``, flush.
With ``swmr=True`` HDF5 orders its own metadata too, and readers may follow live; SWMR allows
nothing but appending once it has started, which HDF5 2.0 does not enforce.  So the datasets are
collected before it starts, and nothing here touches the file itself afterwards.
``swmr=False`` is for file systems that reorder writes (NFS, Lustre): the default format, not
readable before it is closed.

Cost: 5 to 10 ms an append, nearly all of it h5py's own Python.  Not promised: surviving a power
loss (no fsync).
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from lipprof.errors import RunFileError, ShapeError
from lipprof.record.calibration import CALIBRATION, CalibrationReading
from lipprof.record.files import SWMR_LIBVER, RunLock, failing_as, move_aside, open_hdf5
from lipprof.record.layout import (
    create_layout,
    create_side_tables,
    create_variables,
    root_attributes,
    storable,
)
from lipprof.record.measurement import Measurement
from lipprof.record.reader import Run, load_run
from lipprof.record.repair import rewrite
from lipprof.record.schema import REASON_BYTES, VARIABLES, RunHeader
from lipprof.record.side_table import SideTable
from lipprof.record.trials import TRIALS, RecordedTrial


class RunWriter:
    """The only writer of one run file.  An existing file is moved aside, never overwritten.

    Args:
        path: the file; its folder is created.
        header: what is known of the run before the first measurement.
        swmr: let readers follow the file live; False for NFS and Lustre.

    Raises:
        RunFileError: another live writer, a folder that cannot be written, an unusable header.
    """

    def __init__(
        self, path: str | os.PathLike[str], header: RunHeader, *, swmr: bool = True
    ) -> None:
        self.path = Path(path)
        attributes = root_attributes(header)
        self._start()
        try:
            move_aside(self.path)
            with failing_as(f"Cannot create {self.path}"):
                self._file = open_hdf5(self.path, "w", libver=SWMR_LIBVER if swmr else None)
                create_layout(self._file, header, attributes)
            self._freeze(swmr)
        except BaseException:
            self._abandon()
            raise

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        header: RunHeader | None = None,
        *,
        swmr: bool = True,
    ) -> Self:
        """Reopen a finished or killed run and append after its last measurement.

        The file is rewritten first (see ``repair``), which drops a half-written row and costs one
        copy.  Its attributes stay as they are; variables that an older lipprof did not know are
        added, unwritten.

        Args:
            path: the file.
            header: of the process that resumes; its tensors and blocks must be those of the file.
            swmr: as for a new file.

        Returns:
            The writer.

        Raises:
            RunFileError: no such run, another live writer, or different tensors or blocks.
        """
        writer = cls.__new__(cls)
        writer.path = Path(path)
        if not writer.path.is_file():
            raise RunFileError(f"There is no run file {path} to resume.")
        writer._start()
        try:
            writer._reopen(header, swmr)
        except BaseException:
            writer._abandon()
            raise
        return writer

    def append(self, measurement: Measurement) -> None:
        """Write one measurement; it is in the file when this returns.

        Args:
            measurement: the row; its arrays must fit the header's pairs and tensors.

        Raises:
            ShapeError: a field has another shape; nothing was written.
            RunFileError: the disk does not take it, which closes the writer; or it was closed.
        """
        if self._closed:
            raise RunFileError(
                f"{self.path} was closed, by close() or by a failed append: nothing can be added. "
                "RunWriter.resume opens it again."
            )
        row = self._row(measurement)
        with self._writing(f"Cannot append to {self.path}"):
            self._axis.resize(self._n_valid + 1, axis=0)
            for name, value in row.items():
                dataset = self._datasets[name]
                dataset.resize(self._n_valid + 1, axis=0)
                if not _is_fill(value):  # what was not computed takes no room in the file
                    dataset[self._n_valid] = value
            self._run_seconds[()] = self._elapsed()
            self._file.flush()
            self._n_valid += 1  # here, so that Ctrl-C in the next lines cannot lose the row
            self._n_valid_dataset[()] = self._n_valid
            self._file.flush()

    def append_aside(self, row: CalibrationReading | RecordedTrial) -> None:
        """Write a row of a table beside the measurements; those that it has no room for are lost.

        Args:
            row: the row.

        Raises:
            RunFileError: the disk does not take it, which closes the writer.
        """
        if self._closed:
            return
        with self._writing(f"Cannot append to {self.path}"):
            self._aside[type(row)].append(row)
            self._file.flush()

    def close(self) -> None:
        """Mark the run as finished and let go of it.  Twice is harmless.

        Raises:
            RunFileError: the disk does not take it.
        """
        if self._closed:
            return
        with self._writing(f"Cannot finish {self.path}"):
            self._run_seconds[()] = self._elapsed()
            self._finished[()] = 1
            self._file.flush()
        self._abandon()

    def __len__(self) -> int:
        return self._n_valid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self._closed = False
        self._file: Any = None  # h5py.File, whose stubs do not know what is in a file
        self._started = time.monotonic()
        self._lock = RunLock(self.path)

    def _reopen(self, header: RunHeader | None, swmr: bool) -> None:
        with load_run(self.path, live=False) as run:
            if header is not None:
                _require_same_tensors(run, header)
            self._started -= run.run_seconds
        rewrite(self.path, swmr=swmr)
        with failing_as(f"Cannot reopen {self.path}"):
            self._file = open_hdf5(self.path, "r+", libver=SWMR_LIBVER if swmr else None)
            create_variables(self._file)
            if header is not None:
                create_side_tables(self._file, header)
            self._file["finished"][()] = 0
        self._freeze(swmr)

    def _freeze(self, swmr: bool) -> None:
        """Collect the datasets and start SWMR: from here on, only append, write and flush."""
        with failing_as(f"Cannot start writing {self.path}"):
            self._datasets = {v.name: self._file[v.name] for v in VARIABLES if v.name in self._file}
            self._aside = {t.row: _Aside(t, self._file) for t in (CALIBRATION, TRIALS)}
            self._axis = self._file["measurement"]
            self._run_seconds = self._file["run_seconds"]
            self._finished = self._file["finished"]
            self._n_valid_dataset = self._file["n_valid"]
            self._n_valid = int(self._n_valid_dataset[()])
            self._file.flush()
            if swmr:
                self._file.swmr_mode = True

    def _row(self, measurement: Measurement) -> dict[str, Any]:
        """Convert every field to what its variable stores, before anything is written."""
        row = {}
        for variable in VARIABLES:
            dataset = self._datasets.get(variable.name)
            if dataset is None:  # of blocks, without blocks
                continue
            value = getattr(measurement, variable.name)
            if variable.name == "reason":
                value = _fit(value, REASON_BYTES)
            value = np.asarray(value, dataset.dtype)
            if value.shape != dataset.shape[1:]:
                raise ShapeError(
                    f"`{variable.name}` of the measurement at iteration {measurement.iteration} "
                    f"has shape {value.shape}; the run file expects {dataset.shape[1:]} "
                    f"({', '.join(variable.axes[1:]) or 'scalar'})."
                )
            row[variable.name] = value
        return row

    @contextmanager
    def _writing(self, problem: str) -> Iterator[None]:
        """Leave the file as kill -9 would when the disk does not take a write.

        HDF5 tries again when it closes, and what it then leaves counts as truncated; so its
        descriptor is pointed elsewhere first.

        Yields:
            Nothing.

        Raises:
            RunFileError: the block raised.
        """
        try:
            with failing_as(problem):
                yield
        except RunFileError:
            with open(os.devnull, "r+b") as nowhere:
                os.dup2(nowhere.fileno(), self._file.id.get_vfd_handle(), inheritable=False)
            with suppress(RunFileError):
                self._abandon()
            raise

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _abandon(self) -> None:
        """Close the file, whatever state it is in, and release the lock."""
        self._closed = True
        try:
            if self._file is not None:
                with failing_as(f"Cannot close {self.path}"):
                    self._file.close()
        finally:
            self._lock.release()


class _Aside:
    """A table beside the measurements, and how many rows it has."""

    def __init__(self, table: SideTable[Any], file: Any) -> None:
        self._table, self._datasets = table, table.datasets(file)
        self._count = table.count(self._datasets)

    def append(self, row: Any) -> None:
        if self._datasets and self._count < self._table.length:
            self._table.write(self._datasets, self._count, row)
            self._count += 1


def _is_fill(value: np.ndarray) -> bool:
    """Whether unwritten entries of its variable read as this: NaN, 0 or an empty text."""
    return bool(np.isnan(value).all() if value.dtype.kind == "f" else not value.any())


def _require_same_tensors(run: Run, header: RunHeader) -> None:
    here = list(zip(map(storable, header.tensor_names), header.tensor_numel, strict=True))
    there = list(zip(run.tensor_names, run.tensor_numel.tolist(), strict=True))
    blocks = [storable(name) for name in header.blocks]
    if (here, header.top, header.bottom, blocks) == (there, run.top, run.bottom, run.block_names):
        return
    pairs = zip(there, here, strict=False)
    differing = next((f"; first difference: {a} there, {b} here" for a, b in pairs if a != b), "")
    raise RunFileError(
        f"{run.path} cannot be resumed: it records {len(there)} tensors, "
        f"{run.top}+{run.bottom} eigenpairs and {len(run.block_names)} blocks, this run has "
        f"{len(here)}, {header.top}+{header.bottom} and {len(blocks)}{differing}. "
        "Write to another file."
    )


def _fit(text: str, size: int) -> bytes:
    """Cut ``text`` to ``size`` bytes of UTF-8, between characters."""
    return storable(text).encode()[:size].decode(errors="ignore").encode()
