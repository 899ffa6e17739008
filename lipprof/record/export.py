"""A run as the structures of xarray and pandas, for whoever wants to go on in a notebook.

Both are optional.  The whole run is loaded, also one that is still being written.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from lipprof.errors import ConfigError
from lipprof.record.extras import require
from lipprof.record.schema import NUMEL, VARIABLES, B, M, P, T
from lipprof.record.tidy import Per, tidy_columns

if TYPE_CHECKING:
    import pandas
    import xarray

    from lipprof.record.reader import Run


def to_xarray(run: "Run") -> "xarray.Dataset":
    """Build what ``xarray.open_dataset`` gives for the finished file, with only complete rows.

    Args:
        run: any state of it.

    Returns:
        Dimensions measurement, pair, tensor, and block where there are some; ``time`` as
        datetime64.

    Raises:
        MissingExtraError: xarray is not installed.
    """
    xr = require("xarray", "xarray")
    data = {
        v.name: (v.axes, _plain(run[v.name]), {"units": v.unit, "long_name": v.long_name})
        for v in VARIABLES
        if run.block_names or B not in v.axes
    }
    data |= {"run_seconds": ((), run.run_seconds), "finished": ((), np.int8(run.finished))}
    numel = (T, run.tensor_numel, {"units": "1", "long_name": NUMEL})
    coordinates = {P: run.pair_labels, T: run.tensor_names, "numel": numel}
    if run.block_names:
        coordinates[B] = run.block_names
    return xr.decode_cf(xr.Dataset(data, coordinates, run.attrs)).load()


def to_pandas(run: "Run", per: Per = "measurement") -> "pandas.DataFrame":
    """Build a table with one line per measurement, per eigenpair, tensor or block.

    Args:
        run: any state of it.
        per: ``"measurement"``: wide, one line each, index ``iteration``; eigenpairs as columns
            ``eigenvalue_top1`` and so on.  ``"pair"``, ``"tensor"`` and ``"block"``: long, index
            ``(iteration, pair)`` and so on.

    Returns:
        The table; ``eigenvector_mass``, which has three axes, is only in ``to_xarray``.

    Raises:
        ConfigError: another ``per``.
        MissingExtraError: pandas is not installed.
    """
    pd = require("pandas", "xarray")
    if per in {P, T, B}:
        columns = tidy_columns(run, per)
        columns.pop("numel", None)
        return pd.DataFrame(columns).set_index(["iteration", per])
    if per != M:
        raise ConfigError(f"Got {per=}; expected 'measurement', 'pair', 'tensor' or 'block'.")
    columns: dict[str, Any] = tidy_columns(run, per)
    iteration = pd.Index(columns.pop("iteration"), name="iteration")
    columns["time"] = pd.to_datetime(columns["time"], unit="s")
    for variable in VARIABLES:
        if variable.axes == (M, P):
            series = run[variable.name].T
            columns |= {
                f"{variable.name}_{p}": s for p, s in zip(run.pair_labels, series, strict=True)
            }
    return pd.DataFrame(columns, iteration)


def _plain(values: np.ndarray) -> np.ndarray:
    """Copy a series; texts with the fixed length that xarray prefers."""
    return values.astype(str) if values.dtype == object else values.copy()
