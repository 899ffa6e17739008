"""A run as tidy tables, one per axis, and the files that hold them: CSV, Parquet, JSON.

* ``measurement``: one line per measurement, the variables on measurements alone.
* ``pair``: one line per measurement and eigenpair: ``iteration``, ``pair``, the variables on pairs.
* ``tensor``: one line per measurement and tensor: ``iteration``, ``tensor``, ``numel``, the
  variables on tensors.
* ``block``: one line per measurement and diagonal block, where blocks were measured.

Names, units and codes are those of the run file (``VARIABLES``); what was not computed is empty in
CSV, NaN in Parquet, null in JSON.  ``eigenvector_mass`` has three axes and is in JSON only.
Everything is loaded, also of a run that is still being written.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lipprof.record.extras import require
from lipprof.record.schema import VARIABLES, B, M, P, T

if TYPE_CHECKING:
    from lipprof.record.reader import Run

Per = Literal["measurement", "pair", "tensor", "block"]
Columns = dict[str, NDArray[Any]]

CSV_LINES = 65_536  # converted at once


def tidy_columns(run: "Run", per: Per) -> Columns:
    """Build one table, by columns of equal length.

    Args:
        run: any state of it.
        per: the axis besides the measurements.

    Returns:
        Name to values: first what identifies the line, then the variables.
    """
    if per == M:
        return {v.name: run[v.name] for v in VARIABLES if v.axes == (M,)}
    labels = {P: run.pair_labels, T: run.tensor_names, B: run.block_names}[per]
    columns: Columns = {
        "iteration": np.repeat(run["iteration"], len(labels)),
        per: np.tile(np.array(labels, object), len(run)),
    }
    if per == T:
        columns["numel"] = np.tile(run.tensor_numel, len(run))
    return columns | {v.name: run[v.name].reshape(-1) for v in VARIABLES if v.axes == (M, per)}


def write_csv(run: "Run", folder: Path) -> list[Path]:
    """Write the tables as CSV: UTF-8, a header line, the shortest digits that read back exactly.

    Args:
        run: any state of it.
        folder: exists.

    Returns:
        The files, one per axis.
    """
    return _write_tables(run, folder, ".csv", _write_csv)


def write_parquet(run: "Run", folder: Path) -> list[Path]:
    """Write the tables as Parquet; every column has its unit in its metadata.

    Args:
        run: any state of it.
        folder: exists.

    Returns:
        The files, one per axis.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    pyarrow, parquet = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
    units = {v.name: {"unit": v.unit, "long_name": v.long_name} for v in VARIABLES}

    def write(columns: Columns, path: Path) -> None:
        arrays = [pyarrow.array(values) for values in columns.values()]
        fields = [
            pyarrow.field(name, array.type, metadata=units.get(name))
            for name, array in zip(columns, arrays, strict=True)
        ]
        attributes = {name: str(value) for name, value in run.attrs.items()}
        parquet.write_table(pyarrow.table(arrays, pyarrow.schema(fields, attributes)), path)

    return _write_tables(run, folder, ".parquet", write)


def write_json(run: "Run", path: Path) -> None:
    """Write the whole run as one JSON document.

    Keys: ``attributes``, ``pair``, ``tensor`` and ``block`` (labels), ``numel``, ``run_seconds``,
    ``finished``, ``calibration`` (its readings, by field), and ``variables``: name to ``axes``,
    ``unit``, ``long_name`` and nested lists as ``values``.

    Args:
        run: any state of it.
        path: the file.
    """
    variables = {
        v.name: {
            "axes": v.axes,
            "unit": v.unit,
            "long_name": v.long_name,
            "values": _nullable(run[v.name]),
        }
        for v in VARIABLES
    }
    document = {
        "attributes": {name: _finite(value) for name, value in run.attrs.items()},
        "pair": run.pair_labels,
        "tensor": run.tensor_names,
        "block": run.block_names,
        "numel": run.tensor_numel.tolist(),
        "run_seconds": _finite(run.run_seconds),
        "finished": run.finished,
        "calibration": [
            {name: _finite(value) for name, value in asdict(reading).items()}
            for reading in run.calibration
        ],
        "trials": [
            {name: _finite(value) for name, value in asdict(trial).items()} for trial in run.trials
        ],
        "variables": variables,
    }
    with path.open("w", encoding="utf-8") as file:
        json.dump(document, file, allow_nan=False)


def _write_tables(
    run: "Run", folder: Path, suffix: str, write: Callable[[Columns, Path], None]
) -> list[Path]:
    paths = []
    for per in get_args(Per):
        if per == B and not run.block_names:
            continue
        paths.append(folder / f"{per}{suffix}")
        write(tidy_columns(run, per), paths[-1])
    return paths


def _write_csv(columns: Columns, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(columns)
        length = len(next(iter(columns.values())))
        for start in range(0, length, CSV_LINES):
            block = [_nullable(v[start : start + CSV_LINES]) for v in columns.values()]
            lines.writerows(zip(*block, strict=True))


def _nullable(values: NDArray[Any]) -> list[Any]:
    """Turn into nested lists, with None for what is not finite."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        objects = values.astype(object)
        objects[~np.isfinite(values)] = None
        return objects.tolist()
    return values.tolist()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
