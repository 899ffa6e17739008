"""Read a run file: finished, still being written, or left behind by a killed writer.

Only the first ``n_valid`` rows exist.  A variable of the schema that the file lacks (written by an
older lipprof) reads as "not computed", so additions to the schema keep old files readable.
"""

import os
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from lipprof.advice.recommendation import Recommendation
from lipprof.errors import RunFileError
from lipprof.record.answers import RecordedSwitch, recorded_recommendation, recorded_switches
from lipprof.record.calibration import CALIBRATION, CalibrationReading
from lipprof.record.checked import CheckedFile
from lipprof.record.export import Per, to_pandas, to_xarray
from lipprof.record.files import failing_as, has_writer, open_for_reading
from lipprof.record.measurement import Measurement, Status
from lipprof.record.pair_answers import RecordedPairSwitch, recorded_pair_switches
from lipprof.record.schema import SCHEMA_VERSION, UNIT_KINDS, VARIABLES, Variable
from lipprof.record.trials import TRIALS, RecordedTrial
from lipprof.settings import Settings

if TYPE_CHECKING:
    import pandas
    import xarray

CREATION_SECONDS = 1.0  # how long a file that is being created is waited for
BLOCK_ROWS = 64  # read at once while iterating
_BY_NAME = {variable.name: variable for variable in VARIABLES}


def register_view(name: str, build: Callable[["Run"], Any]) -> None:
    """Give runs an attribute that a higher layer knows how to build, as pandas' accessors do.

    Args:
        name: of the attribute.
        build: called with the run at every access.
    """
    setattr(Run, name, property(build))


def open_run(path: str | os.PathLike[str]) -> "Run":
    """Open a run file for reading, also while it is being written.

    A file that its writer is just creating is waited for.

    Args:
        path: the file.

    Returns:
        The run.

    Raises:
        RunFileError: there is no such file, or it is not a readable run file.
    """
    path = Path(path)
    deadline = time.monotonic() + CREATION_SECONDS
    while True:
        live = has_writer(path)
        try:
            return load_run(path, live=live)
        except RunFileError:
            if not live or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def load_run(path: Path, *, live: bool) -> "Run":
    """Open a run file when it is known whether a writer has it.

    Args:
        path: the file.
        live: whether a writer has it.

    Returns:
        The run.

    Raises:
        RunFileError: it is not a readable run file.
    """
    file = open_for_reading(path, live=live)
    try:
        return Run(path, file)
    except BaseException:
        file.close()
        raise


class Run:
    """A recorded run; ``run["eigenvalue"]`` is the series of a variable, (len(run), ...).

    Attributes:
        path: the file.
        attrs: root attributes, texts and numbers.
        tensor_names: profiled tensors, or other units, in flat order, T.
        tensor_numel: their sizes, (T,).
        pair_labels: ``top1`` ... ``bottom1``, P.
        block_names: diagonal blocks, B; empty where none were asked for.
        top: number of largest eigenvalues.
        bottom: number of smallest eigenvalues.
        plot: the figures of the report, in a run that ``lipprof.open_run`` opened.
    """

    plot: Any

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self._load(file)

    def _load(self, file: h5py.File) -> None:
        self._file = file
        self._checked = CheckedFile(self.path, file)
        self.attrs = self._checked.attributes()
        self._require_schema()
        self.tensor_names: list[str] = self._checked.read("tensor", "T", (None,)).tolist()
        self.pair_labels: list[str] = self._checked.read("pair", "T", (None,)).tolist()
        self.block_names: list[str] = (
            self._checked.read("block", "T", (None,)).tolist() if "block" in self._checked else []
        )
        self._sizes = {
            "pair": len(self.pair_labels),
            "tensor": len(self.tensor_names),
            "block": len(self.block_names),
        }
        numel = self._checked.read("numel", "iu", (self._sizes["tensor"],))
        self.tensor_numel: NDArray[np.int64] = numel.astype(np.int64)
        self.top, self.bottom = self._ends()
        self._cache: dict[str, NDArray[Any]] = {}
        self._n_valid = self._read_n_valid()

    @cached_property
    def settings(self) -> Settings:
        """The settings that the run was made with.

        Raises:
            RunFileError: this lipprof cannot read them.
        """
        with failing_as(f"The settings in {self.path} cannot be read"):
            return Settings.model_validate(tomllib.loads(self.attrs["settings"]))

    @property
    def unit_kind(self) -> str:
        """What ``tensor_names`` are: tensor, module or chunk."""
        kind = self.attrs.get("unit_kind")
        return str(kind) if kind in UNIT_KINDS else "tensor"

    @property
    def finished(self) -> bool:
        """Whether the writer was closed; False while it writes, and when it was killed."""
        return bool(self._checked.read("finished", "iu"))

    @property
    def live(self) -> bool:
        """Whether a writer has the file now; True also where that cannot be found out."""
        return has_writer(self.path)

    @property
    def run_seconds(self) -> float:
        """Wall time of the run up to the last append, or to its end; s."""
        return float(self._checked.read("run_seconds", "f"))

    @property
    def calibration(self) -> list[CalibrationReading]:
        """The trace of step-length calibration, as it is in the file now; empty without one."""
        return CALIBRATION.read(self._checked)

    @property
    def trials(self) -> list[RecordedTrial]:
        """The trials of AMOS's two optimizers so far; empty without a contest."""
        return TRIALS.read(self._checked)

    def __len__(self) -> int:
        return self._n_valid

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return the series of the variable ``name``: read-only, kept until ``refresh``."""
        if name not in self._cache:
            self._cache[name] = self._rows(self._variable(name), 0, self._n_valid)
            self._cache[name].flags.writeable = False
        return self._cache[name]

    def row(self, name: str, index: int) -> NDArray[Any]:
        """Return one variable at one measurement, without reading its whole series.

        Args:
            name: of the variable.
            index: position in the file, not the iteration; -1 is the last.

        Returns:
            The values on the other axes; 0-d where there are none.

        Raises:
            RunFileError: there is no such variable or measurement, or the file is damaged.
        """
        position = self._position(index)
        return self._rows(self._variable(name), position, position + 1)[0]

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return one variable at consecutive measurements, without reading its whole series.

        Args:
            name: of the variable.
            start: position of the first in the file.
            stop: position after the last.

        Returns:
            The values, (stop - start, ...).

        Raises:
            RunFileError: there is no such variable or measurement, or the file is damaged.
        """
        return self._rows(self._variable(name), start, stop)

    def measurement(self, index: int) -> Measurement:
        """Return one measurement; -1 is the last.

        Args:
            index: position in the file, not the iteration.

        Returns:
            The measurement as it was recorded.

        Raises:
            RunFileError: there is no such measurement, or its row is damaged.
        """
        row = self._position(index)
        return next(self._measurements(row, row + 1))

    def __iter__(self) -> Iterator[Measurement]:
        for start in range(0, len(self), BLOCK_ROWS):
            yield from self._measurements(start, min(start + BLOCK_ROWS, len(self)))

    def refresh(self) -> int:
        """Look for measurements that were appended since the file was opened or last refreshed.

        A run that was resumed is another file under the same name; it is followed.

        Returns:
            How many became visible; all of them where another run took the name.

        Raises:
            RunFileError: the file was damaged meanwhile.
        """
        before, created = self._n_valid, self.attrs.get("created")
        if self._checked.replaced():
            file = open_for_reading(self.path, live=has_writer(self.path))
            self.close()
            self._load(file)
        else:
            self._n_valid = self._read_n_valid()
        if self._n_valid != before:
            self._cache.clear()
        return self._n_valid - (before if self.attrs.get("created") == created else 0)

    def recommendation(self, index: int = -1) -> Recommendation:
        """Rebuild the answer that was given at a measurement.

        Args:
            index: position in the file; where that measurement failed, the last answer before it.

        Returns:
            The recommendation; ``stable_for`` counts the answers since the choice last changed.

        Raises:
            RunFileError: nothing was recommended up to there.
        """
        return recorded_recommendation(self, self._position(index) + 1)

    def switches(self, latest: int | None = None) -> list[RecordedSwitch]:
        """List what AMOS moved from one optimizer to the other, with the reasons.

        Args:
            latest: how many of the latest; None: all.

        Returns:
            One entry per tensor that moved, in the order of time; empty where AMOS was not used.
        """
        return recorded_switches(self, latest)

    def pair_switches(self, latest: int | None = None) -> list[RecordedPairSwitch]:
        """List the eigenpairs that ELMO's or FOSI's rule moved, with the reasons.

        Args:
            latest: how many of the latest; None: all.

        Returns:
            One entry per pair that moved, in the order of time; empty where there was no rule.
        """
        return recorded_pair_switches(self, latest)

    def to_xarray(self) -> "xarray.Dataset":
        """Load the run as an ``xarray.Dataset``; see ``lipprof.record.export``."""
        return to_xarray(self)

    def to_pandas(self, per: Per = "measurement") -> "pandas.DataFrame":
        """Load the run as a table, one line per measurement, pair, tensor or block."""
        return to_pandas(self, per)

    def close(self) -> None:
        """Close the file.  Twice is harmless."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed"
        if self._file:
            state = "finished" if self.finished else "not finished"
        return (
            f"<Run {self.path}: {len(self)} measurements, {self.top}+{self.bottom} eigenpairs, "
            f"{len(self.tensor_names)} {self.unit_kind}s, {state}>"
        )

    def _require_schema(self) -> None:
        version = self.attrs.get("schema_version")
        if not isinstance(version, int):
            raise RunFileError(
                f"{self.path} is an HDF5 file but not a run of lipprof: it has no `schema_version`."
            )
        if version > SCHEMA_VERSION:
            raise RunFileError(
                f"{self.path} has schema {version}, written by lipprof "
                f"{self.attrs.get('lipprof_version', '?')}; this one reads up to {SCHEMA_VERSION}. "
                "Run `pip install --upgrade lipprof`."
            )

    def _ends(self) -> tuple[int, int]:
        top, bottom = self.attrs.get("top"), self.attrs.get("bottom")
        if not isinstance(top, int) or not isinstance(bottom, int) or min(top, bottom) < 0:
            raise self._checked.damaged(f"top={top!r} and bottom={bottom!r} are not two counts")
        if top + bottom != self._sizes["pair"]:
            raise self._checked.damaged(f"{top=} and {bottom=}, but {self._sizes['pair']} pairs")
        return top, bottom

    def _read_n_valid(self) -> int:
        n_valid = int(self._checked.read("n_valid", "iu"))
        if n_valid < 0:
            raise self._checked.damaged(f"`n_valid` is {n_valid}")
        return n_valid

    def _variable(self, name: str) -> Variable:
        if name not in _BY_NAME:
            raise RunFileError(f"There is no variable {name!r}; known are {', '.join(_BY_NAME)}.")
        return _BY_NAME[name]

    def _position(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise RunFileError(
                f"{self.path} has {len(self)} measurements; there is none at position {index}."
            )
        return index % len(self)

    def _measurements(self, start: int, stop: int) -> Iterator[Measurement]:
        series = {v.name: self._rows(v, start, stop) for v in VARIABLES}
        for row in range(stop - start):
            fields: dict[str, Any] = {name: values[row] for name, values in series.items()}
            for name, value in fields.items():
                fields[name] = value.item() if isinstance(value, np.generic) else value
            with failing_as(f"{self.path} is damaged at measurement {start + row}"):
                fields["status"] = Status(fields["status"])
            yield Measurement(**fields)

    def _rows(self, variable: Variable, start: int, stop: int) -> NDArray[Any]:
        sizes = tuple(self._sizes[axis] for axis in variable.axes[1:])
        dtype = np.dtype(variable.dtype)
        if variable.name not in self._checked:
            return _not_computed(dtype, (stop - start, *sizes))
        kind = {"f": "f", "i": "iu", "S": "T"}[dtype.kind]
        values = self._checked.read(variable.name, kind, (None, *sizes), rows=slice(start, stop))
        return values if kind == "T" else values.astype(dtype, copy=False)


def _not_computed(dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if dtype.kind == "S":
        return np.full(shape, "", object)
    return np.full(shape, np.nan if dtype.kind == "f" else 0, dtype)
