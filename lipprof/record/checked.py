"""Read an HDF5 file that may come from anyone: nothing in it is believed before it is checked.

Refused are links that lead out of the file (soft, external, virtual, external storage), types and
shapes other than the expected, and datasets that claim more than a file of this size can hold.
Whatever h5py raises beyond that comes out as one ``RunFileError``.
"""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lipprof.errors import RunFileError
from lipprof.record.files import failing_as

MAX_COMPRESSION = 1032  # of deflate: no honest dataset unpacks to more than this times the file

Kind = str  # letters of numpy's dtype.kind; "T" is text of fixed or variable length
KIND_NAMES = {"f": "floats", "iu": "integers", "T": "text"}


def is_own_dataset(file: h5py.File, name: str) -> bool:
    """Tell whether ``name`` is a dataset whose values lie in this file, not where a link leads.

    Returns:
        False also for groups, types, virtual datasets and external storage.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return False
    item = file[name]
    return isinstance(item, h5py.Dataset) and not item.is_virtual and not item.external


class CheckedFile:
    """Checked access to the root group of an HDF5 file.

    Args:
        path: named in the errors.
        file: open for reading.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self._file = file
        self._identity = path.stat()

    def damaged(self, problem: str) -> RunFileError:
        """Return the error that says what is wrong with the file."""
        return RunFileError(f"{self.path} is damaged or not a run file: {problem}.")

    def attributes(self) -> dict[str, Any]:
        """Read the root attributes that are single texts or numbers; others are left out.

        Returns:
            Name to str, int or float.
        """
        values = {}
        with failing_as(f"{self.path} is damaged or not a run file"):
            for name in self._file.attrs:
                stored = self._file.attrs.get_id(name)
                text = h5py.check_string_dtype(stored.dtype) is not None
                if stored.shape != () or not (text or stored.dtype.kind in "iuf"):
                    continue
                value: Any = self._file.attrs[name]
                if isinstance(value, bytes):
                    value = value.decode(errors="replace")
                values[name] = value if isinstance(value, str) else value.item()
        return values

    def replaced(self) -> bool:
        """Whether the path names another file by now."""
        self._require_open()
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return False
        return not os.path.samestat(now, self._identity)

    def __contains__(self, name: str) -> bool:
        self._require_open()
        with failing_as(f"{self.path} is damaged"):
            return self._file.get(name, getlink=True) is not None

    def read(
        self, name: str, kind: Kind, shape: tuple[int | None, ...] = (), rows: slice | None = None
    ) -> NDArray[Any]:
        """Read a dataset, or some rows of it, as it is in the file now.

        Args:
            name: in the root group.
            kind: ``"f"``, ``"iu"`` or ``"T"``.
            shape: expected; None: any length.
            rows: of axis 0, with start and stop; all of them must exist.

        Returns:
            The values; texts are str objects.

        Raises:
            RunFileError: missing, or not what was expected.
        """
        self._require_open()
        if name not in self:
            raise self.damaged(f"`{name}` is missing")
        with failing_as(f"{self.path}: `{name}` cannot be read"):
            dataset = self._dataset(name, kind)
            if len(shape) != dataset.ndim or any(
                want not in {None, have} for want, have in zip(shape, dataset.shape, strict=True)
            ):
                raise self.damaged(f"`{name}` has shape {dataset.shape}, expected {shape}")
            if rows is not None and rows.stop > dataset.shape[0]:
                raise self.damaged(f"`{name}` has {dataset.shape[0]} rows of {rows.stop}")
            self._require_plausible(dataset, rows)
            selection = () if rows is None else rows
            return np.asarray(
                (dataset.asstr("utf-8", "replace") if kind == "T" else dataset)[selection]
            )

    def _dataset(self, name: str, kind: Kind) -> h5py.Dataset:
        if not is_own_dataset(self._file, name):
            raise self.damaged(f"`{name}` is not a dataset of this file itself")
        dataset: Any = self._file[name]
        dataset.id.refresh()
        is_text = h5py.check_string_dtype(dataset.dtype) is not None
        if not (is_text if kind == "T" else dataset.dtype.kind in kind):
            raise self.damaged(f"`{name}` holds {dataset.dtype}, expected {KIND_NAMES[kind]}")
        return dataset

    def _require_plausible(self, dataset: h5py.Dataset, rows: slice | None) -> None:
        size = dataset.size or 0
        if rows is not None and dataset.shape[0]:
            size = size // dataset.shape[0] * (rows.stop - rows.start)
        file_bytes = self._file_bytes()
        if size * dataset.dtype.itemsize > MAX_COMPRESSION * file_bytes:
            raise self.damaged(
                f"`{dataset.name}` claims {size} entries, more than {file_bytes} bytes can hold"
            )

    def _file_bytes(self) -> int:
        if self._file.driver == "fileobj":
            return self._file.id.get_filesize()
        return os.fstat(self._file.id.get_vfd_handle()).st_size  # grows while a writer is live

    def _require_open(self) -> None:
        if not self._file:
            raise RunFileError(f"{self.path} was closed; open the run again to read more of it.")
