"""How the schema is laid out in HDF5: the complete file, before the first measurement.

Decisions, each for kill -9 and for readers that know nothing of lipprof:
* Every axis of every variable has a dimension scale: the file is valid netCDF-4.
* Chunks of about ``CHUNK_BYTES`` along ``measurement``, uncompressed.  A compressed chunk would be
  rewritten elsewhere at every append, and under SWMR the old place is never used again.
* Variable-length strings (tensor names, settings) are written here and never again; what is
  appended (``reason``) has a fixed length.
* An axis of length 0 (a run without eigenpairs) is unlimited, since HDF5 has no fixed empty chunk.
"""

import importlib.metadata
from datetime import UTC, datetime
from typing import Any

import h5py
import numpy as np

from lipprof.advice.recommendation import Choice
from lipprof.errors import RunFileError
from lipprof.record.calibration import CALIBRATION
from lipprof.record.measurement import Match, Status, pair_labels
from lipprof.record.schema import NUMEL, SCHEMA_VERSION, VARIABLES, B, RunHeader, Variable
from lipprof.record.trials import TRIALS
from lipprof.version import __version__

CHUNK_BYTES = 32 * 1024
CHUNK_ROWS = 512
NO_COORDINATE = "This is a netCDF dimension but not a netCDF variable."
TEXT = h5py.string_dtype()
FLAGS: dict[str, type[Status] | type[Match] | type[Choice]] = {
    "status": Status,
    "match": Match,
    "recommendation": Choice,
    "assigned": Choice,
    "pair_assigned": Choice,
}


def create_layout(file: h5py.File, header: RunHeader, attributes: dict[str, Any]) -> None:
    """Write everything but measurements into an empty file.

    Args:
        file: open for writing, SWMR not started.
        header: what is known of the run.
        attributes: its ``root_attributes``.
    """
    for name, value in attributes.items():
        file.attrs[name] = value
    axis = file.create_dataset("measurement", (0,), "i4", maxshape=(None,), chunks=(CHUNK_ROWS,))
    axis.make_scale(NO_COORDINATE)
    _create_labels(file, "pair", pair_labels(header.top, header.bottom))
    _create_labels(file, "tensor", [storable(name) for name in header.tensor_names])
    numel = file.create_dataset("numel", data=np.asarray(header.tensor_numel, np.int64))
    numel.dims[0].attach_scale(file["tensor"])
    _describe(numel, "1", NUMEL)
    if header.blocks:
        _create_labels(file, B, [storable(name) for name in header.blocks])
    create_variables(file)
    create_side_tables(file, header)
    for name, dtype, long_name in (
        ("run_seconds", "f8", "wall time since the writer was created; s"),
        ("finished", "i1", "1: the writer was closed"),
        ("n_valid", "i8", "measurements that are complete; written last"),
    ):
        file.create_dataset(name, (), dtype, data=0).attrs["long_name"] = long_name


def create_side_tables(file: h5py.File, header: RunHeader) -> None:
    """Create the tables beside the measurements that a file lacks."""
    for table, wanted in ((CALIBRATION, header.calibrated), (TRIALS, header.contested)):
        if wanted and not table.datasets(file):
            table.create(file)


def create_variables(file: h5py.File) -> None:
    """Create the variables that a file lacks, of those whose dimensions it has."""
    for variable in VARIABLES:
        if variable.name not in file and all(axis in file for axis in variable.axes):
            _create_variable(file, variable)


def _create_variable(file: h5py.File, variable: Variable) -> None:
    """Create one variable with as many rows as the file has; unwritten values read as its fill."""
    scales: list[Any] = [file[axis] for axis in variable.axes]
    shape = tuple(scale.shape[0] for scale in scales)
    dtype = np.dtype(variable.dtype)
    if dtype.kind == "S":
        dtype = h5py.string_dtype("utf-8", dtype.itemsize)
    row_bytes = dtype.itemsize * max(1, int(np.prod(shape[1:])))
    rows = int(np.clip(CHUNK_BYTES // row_bytes, 1, CHUNK_ROWS))
    dataset = file.create_dataset(
        variable.name,
        shape,
        dtype,
        maxshape=(None, *(size or None for size in shape[1:])),
        chunks=(rows, *(max(1, size) for size in shape[1:])),
        fillvalue=np.nan if dtype.kind == "f" else None,
    )
    for axis, scale in enumerate(scales):
        dataset.dims[axis].attach_scale(scale)
    _describe(dataset, variable.unit, variable.long_name)
    if codes := FLAGS.get(variable.name):
        dataset.attrs["flag_values"] = np.array([code.value for code in codes], np.int8)
        dataset.attrs["flag_meanings"] = " ".join(code.name.lower() for code in codes)


def root_attributes(header: RunHeader) -> dict[str, Any]:
    """Return the root attributes of a new file.

    Args:
        header: what is known of the run.

    Returns:
        Name to text or number.

    Raises:
        RunFileError: one of ``header.extra`` is not a scalar, or has a name that is taken; or the
            tensors' names and sizes disagree.
    """
    if len(header.tensor_names) != len(header.tensor_numel):
        raise RunFileError(
            f"The header names {len(header.tensor_names)} tensors but gives "
            f"{len(header.tensor_numel)} sizes; expected one size for each name."
        )
    attributes = {
        "Conventions": "CF-1.10",
        "coordinates": "iteration time numel",
        "schema_version": SCHEMA_VERSION,
        "lipprof_version": __version__,
        "torch_version": _torch_version(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "n": sum(header.tensor_numel),
        "top": header.top,
        "bottom": header.bottom,
        "model_class": header.model_class,
        "optimizer_class": header.optimizer_class,
        "device": header.device,
        "precision": header.precision,
        "source": header.source,
        "probe": header.probe,
        "unit_kind": header.unit_kind,
        "pair_rule": header.pair_rule,
        "settings": header.settings,
    }
    for name, value in (header.extra or {}).items():
        if name in attributes or not isinstance(value, str | int | float | np.number):
            raise RunFileError(
                f"Cannot store the extra attribute {name}={value!r}: expected a string or a number "
                f"under a name other than {', '.join(attributes)}."
            )
        attributes[name] = int(value) if isinstance(value, bool) else value
    return {name: storable(v) if isinstance(v, str) else v for name, v in attributes.items()}


def storable(text: str) -> str:
    """Return ``text`` with what HDF5 strings cannot hold, NUL and lone surrogates, escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def _create_labels(file: h5py.File, name: str, labels: list[str]) -> None:
    count = len(labels)
    dataset = file.create_dataset(
        name, (count,), TEXT, maxshape=(count or None,), chunks=(max(1, count),)
    )
    if count:
        dataset[:] = np.array(labels, object)
    dataset.make_scale(name)


def _describe(dataset: h5py.Dataset, unit: str, long_name: str) -> None:
    dataset.attrs["units"] = unit
    dataset.attrs["long_name"] = long_name


def _torch_version() -> str:
    """Ask the installed package, not torch: a process that only writes need not import it."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
