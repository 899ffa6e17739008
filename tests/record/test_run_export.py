"""The run as xarray and pandas see it, through the file itself and through lipprof."""

import importlib

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from lipprof.errors import ConfigError, MissingExtraError
from lipprof.record import VARIABLES, RunWriter, open_run, repair
from lipprof.record.schema import M

MICROSECOND = np.timedelta64(1, "us")


@pytest.fixture(params=[True, False], ids=["swmr", "plain"])
def path(request, tmp_path, make_header, make_measurement):
    """Return a finished run of four measurements, with a name longer than 512 bytes."""
    header = make_header(tensor_names=("a", "b" * 600, "ü"))
    with RunWriter(tmp_path / "run.h5", header, swmr=request.param) as writer:
        for i in range(4):
            writer.append(make_measurement(i, time=1.7e9 + i / 4, reason=f"größe {i}"))
    return tmp_path / "run.h5"


@pytest.mark.parametrize("repaired", [False, True])
@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_the_file_opens_in_xarray(path, engine, repaired):
    if repaired:
        repair(path)
    run = open_run(path)
    with xr.open_dataset(path, engine=engine) as data:
        assert dict(data.sizes) == {"measurement": 4, "pair": 3, "tensor": 3, "block": 2}
        assert set(data.coords) == {"iteration", "time", "pair", "tensor", "numel", "block"}
        assert data.pair.values.tolist() == ["top1", "top2", "bottom1"]
        assert data.tensor.values.tolist() == ["a", "b" * 600, "ü"]
        assert data.numel.values.tolist() == [40, 4, 12]
        assert data.attrs["model_class"] == "Net"
        assert int(data.n_valid) == 4
        assert (
            abs(data.time.values[1] - np.datetime64("2023-11-14T22:13:20.250000000")) < MICROSECOND
        )
        for variable in VARIABLES:
            array = data[variable.name]
            assert array.dims == variable.axes
            if variable.name == "reason":
                texts = [t.decode() if isinstance(t, bytes) else t for t in array.values]
                assert texts == run["reason"].tolist()
            elif variable.name != "time":
                np.testing.assert_array_equal(array.values, run[variable.name])
                assert array.dtype == variable.dtype
        assert data.eigenvalue.sel(pair="bottom1").values.tolist() == [m.eigenvalue[2] for m in run]


def test_to_xarray_is_what_xarray_opens(path):
    with xr.open_dataset(path, engine="netcdf4") as there:
        here = open_run(path).to_xarray()
        assert set(there.variables) - set(here.variables) == {"n_valid"}
        for name in here.variables:
            assert here[name].equals(there[name]), name
            assert here[name].attrs.get("units") == there[name].attrs.get("units"), name


def test_to_xarray_of_a_live_run_has_complete_rows_only(tmp_path, header, make_measurement):
    with RunWriter(tmp_path / "run.h5", header) as writer:
        writer.append(make_measurement(0))
        data = open_run(tmp_path / "run.h5").to_xarray()
    assert data.sizes["measurement"] == 1
    assert not bool(data.finished)


def test_to_pandas_wide(path):
    run = open_run(path)
    table = run.to_pandas()
    assert table.index.name == "iteration"
    assert table.index.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(table["loss"], run["loss"])
    np.testing.assert_array_equal(table["eigenvalue_bottom1"], run["eigenvalue"][:, 2])
    assert abs(table["time"].iloc[1] - pd.Timestamp("2023-11-14T22:13:20.250")) < MICROSECOND
    assert table["reason"].iloc[2] == "größe 2"
    scalars = sum(v.axes == (M,) for v in VARIABLES)
    pairs = sum(v.axes == (M, "pair") for v in VARIABLES)
    assert table.shape == (4, scalars - 1 + 3 * pairs)


@pytest.mark.parametrize(
    ("per", "name", "label"), [("pair", "regret", "top2"), ("tensor", "tensor_slope", "ü")]
)
def test_to_pandas_long(path, per, name, label):
    run = open_run(path)
    table = run.to_pandas(per=per)
    assert table.index.names == ["iteration", per]
    assert len(table) == 12
    column = {"top2": 1, "ü": 2}[label]
    np.testing.assert_array_equal(table.xs(label, level=per)[name], run[name][:, column])
    assert set(table.columns) == {v.name for v in VARIABLES if v.axes == (M, per)}


def test_to_pandas_of_an_empty_run(tmp_path, header):
    RunWriter(tmp_path / "run.h5", header).close()
    run = open_run(tmp_path / "run.h5")
    assert len(run.to_pandas()) == len(run.to_pandas("pair")) == 0
    assert run.to_xarray().sizes["measurement"] == 0
    with pytest.raises(ConfigError, match="expected 'measurement', 'pair', 'tensor' or 'block'"):
        run.to_pandas("layer")


@pytest.mark.parametrize(("module", "method"), [("xarray", "to_xarray"), ("pandas", "to_pandas")])
def test_missing_extras(path, monkeypatch, module, method):
    real = importlib.import_module

    def missing(name, *args):
        if name == module:
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=rf"{module}.*pip install 'lipprof\[xarray\]'"):
        getattr(open_run(path), method)()
