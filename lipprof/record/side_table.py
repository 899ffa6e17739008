"""A table beside the measurements: rows of a dataclass, each column a dataset.

It is created whole with the file, since nothing but the measurements' axis may grow once SWMR has
started.  Its last column, a code, is written last of each row: a row without it does not exist.
"""

import enum
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import h5py
import numpy as np

from lipprof.record.checked import CheckedFile
from lipprof.record.files import failing_as

Row = TypeVar("Row")
_MISSING = -1


@dataclass(frozen=True, slots=True)
class Column:
    """A field of the rows; ``codes``: the labelled numbers that it holds."""

    name: str
    dtype: str
    unit: str
    long_name: str
    codes: type[enum.IntEnum] | None = None

    @property
    def description(self) -> str:
        """The long name, with the meaning of the codes."""
        if self.codes is None:
            return self.long_name
        return "; ".join([self.long_name, *(f"{c.value}: {_label(c)}" for c in self.codes)])


class SideTable(Generic[Row]):
    """How rows of one type are stored.

    Args:
        row: the dataclass; its fields are the columns.
        prefix: of the datasets' names.
        axis: name of their dimension.
        length: rows at most.
        columns: the last one has codes.
    """

    def __init__(
        self, row: type[Row], prefix: str, axis: str, length: int, columns: tuple[Column, ...]
    ) -> None:
        self.row, self.axis, self.length, self.columns = row, axis, length, columns
        self._prefix, self._mark = prefix, columns[-1].name

    def create(self, file: h5py.File) -> None:
        """Create the empty table."""
        axis = file.create_dataset(self.axis, (self.length,), "i4", data=np.arange(self.length))
        axis.make_scale(self.axis)
        for column in self.columns:
            fill = np.nan if column.dtype == "f8" else _MISSING
            dataset = file.create_dataset(
                self._stored(column.name), (self.length,), column.dtype, fillvalue=fill
            )
            dataset.dims[0].attach_scale(axis)
            dataset.attrs["units"] = column.unit
            dataset.attrs["long_name"] = column.description
            if column.codes is not None:
                dataset.attrs["flag_values"] = np.array(list(column.codes), np.int8)
                dataset.attrs["flag_meanings"] = " ".join(
                    _label(code).replace(" ", "_") for code in column.codes
                )

    def datasets(self, file: Any) -> dict[str, Any]:
        """Collect the datasets by field; none where the file has no table."""
        names = {column.name: self._stored(column.name) for column in self.columns}
        return {name: file[stored] for name, stored in names.items() if stored in file}

    def count(self, datasets: dict[str, Any]) -> int:
        """Count the rows that were written."""
        return int((datasets[self._mark][:] != _MISSING).sum()) if datasets else 0

    def write(self, datasets: dict[str, Any], position: int, row: Row) -> None:
        """Write one row, the code that makes it exist last; of an older file what it has."""
        for column in self.columns:
            if column.name in datasets:
                datasets[column.name][position] = getattr(row, column.name)

    def read(self, file: CheckedFile) -> list[Row]:
        """Read all rows.

        Args:
            file: the run file.

        Returns:
            The rows in their order; none where the file has no table.  A column that an older file
            lacks has the default of its field.

        Raises:
            RunFileError: the table is damaged.
        """
        if self._stored(self._mark) not in file:
            return []
        stored = {
            column.name: file.read(
                self._stored(column.name), "f" if column.dtype == "f8" else "iu", (None,)
            )
            for column in self.columns
            if self._stored(column.name) in file
        }
        there = [column for column in self.columns if column.name in stored]
        with failing_as(f"{file.path}: its {self._prefix} is damaged"):
            return [
                self.row(**{c.name: _value(c, stored[c.name][position]) for c in there})
                for position in np.flatnonzero(stored[self._mark] != _MISSING)
            ]

    def _stored(self, name: str) -> str:
        return f"{self._prefix}_{name}"


def _value(column: Column, stored: Any) -> Any:
    return stored.item() if column.codes is None else column.codes(stored)


def _label(code: Any) -> str:
    return getattr(code, "label", code.name.lower())
