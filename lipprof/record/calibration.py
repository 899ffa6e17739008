"""The trace of step-length calibration: a table of its own, beside the measurements.

It is created whole with the file, since nothing but the measurements' axis may grow once SWMR has
started.  ``calibration_outcome`` is written last of each row: a row without it does not exist.
"""

from dataclasses import dataclass, fields
from typing import Any

import h5py
import numpy as np

from lipprof.advice import Outcome
from lipprof.record.checked import CheckedFile
from lipprof.record.files import failing_as

READINGS = 256  # rows; calibration takes at most some 80 readings per optimizer
AXIS = "reading"
_MISSING = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReading:
    """One reading of the loss along a step, and what was decided."""

    iteration: int  # completed optimizer steps
    side: int  # 0: the optimizer, or AMOS's first; 1: AMOS's second
    learning_rate: float  # of the next step, largest over the parameter groups
    factor: float  # the same over the given learning rate
    room: float  # averaged x*: times the step that the loss allows; 1
    slope: float  # γ along the step; loss
    curvature: float  # loss
    bend: float  # third derivative along the step; loss
    num_gradients: int  # of the probe, that the reading took
    seconds: float  # wall time that it took
    outcome: Outcome


_COLUMNS = {
    "iteration": ("i8", "1", "completed optimizer steps"),
    "side": ("i1", "1", "0: the optimizer, or AMOS's first; 1: AMOS's second"),
    "learning_rate": ("f8", "1", "of the next step, largest over the parameter groups"),
    "factor": ("f8", "1", "the same over the given learning rate"),
    "room": ("f8", "1", "averaged x* of eq. 7 along the step; growth ends at 1"),
    "slope": ("f8", "loss", "descent per step at its start"),
    "curvature": ("f8", "loss", "second derivative along the step"),
    "bend": ("f8", "loss", "third derivative along the step"),
    "num_gradients": ("i8", "1", "gradients of the probe that the reading took"),
    "seconds": ("f8", "s", "wall time that it took"),
    "outcome": ("i1", "1", "; ".join(f"{o.value}: {o.label}" for o in Outcome)),
}


def create_calibration(file: h5py.File) -> None:
    """Create the empty table."""
    axis = file.create_dataset(AXIS, (READINGS,), "i4", data=np.arange(READINGS))
    axis.make_scale(AXIS)
    for name, (dtype, unit, long_name) in _COLUMNS.items():
        fill = np.nan if dtype == "f8" else _MISSING
        dataset = file.create_dataset(_stored(name), (READINGS,), dtype, fillvalue=fill)
        dataset.dims[0].attach_scale(axis)
        dataset.attrs["units"] = unit
        dataset.attrs["long_name"] = long_name
        if name == "outcome":
            dataset.attrs["flag_values"] = np.array(list(Outcome), np.int8)
            dataset.attrs["flag_meanings"] = " ".join(outcome.label for outcome in Outcome)


def calibration_columns(file: Any) -> dict[str, Any]:
    """Collect the table's datasets by field; none where the file has no table."""
    return {name: file[_stored(name)] for name in _COLUMNS if _stored(name) in file}


def num_readings(columns: dict[str, Any]) -> int:
    """Count the rows that were written."""
    return int((columns["outcome"][:] != _MISSING).sum()) if columns else 0


def write_reading(columns: dict[str, Any], row: int, reading: CalibrationReading) -> None:
    """Write one row, the outcome last."""
    for field in fields(CalibrationReading):
        columns[field.name][row] = getattr(reading, field.name)


def read_calibration(file: CheckedFile) -> list[CalibrationReading]:
    """Read the trace.

    Args:
        file: the run file.

    Returns:
        The readings in their order; none where the run was not calibrated.

    Raises:
        RunFileError: the table is damaged.
    """
    if _stored("outcome") not in file:
        return []
    columns = {
        name: file.read(_stored(name), "f" if dtype == "f8" else "iu", (None,))
        for name, (dtype, _, _) in _COLUMNS.items()
    }
    with failing_as(f"{file.path}: the calibration is damaged"):
        return [
            CalibrationReading(
                **{
                    name: values[row].item()
                    for name, values in columns.items()
                    if name != "outcome"
                },
                outcome=Outcome(columns["outcome"][row]),
            )
            for row in np.flatnonzero(columns["outcome"] != _MISSING)
        ]


def _stored(name: str) -> str:
    return f"calibration_{name}"
