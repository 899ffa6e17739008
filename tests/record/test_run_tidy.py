"""Tidy tables and the files that hold them, read back by the readers that people use."""

import csv
import json

import numpy as np
import pandas as pd
import pytest

from lipprof.record import VARIABLES, Measurement, RunWriter, copy_run, open_run
from lipprof.record.schema import B, M, P, T
from lipprof.record.tidy import tidy_columns, write_csv, write_json, write_parquet

LINES = {M: 3, P: 9, T: 9, B: 6}
HOSTILE = ('comma, "quote"\nnewline', "=1+1", "größe")


@pytest.fixture
def run(tmp_path, make_header, make_measurement):
    """Return a live run of three measurements, the last of which failed."""
    writer = RunWriter(tmp_path / "run.h5", make_header(tensor_names=HOSTILE))
    for i in range(2):
        writer.append(make_measurement(i))
    writer.append(Measurement.blank(pairs=3, tensors=3, blocks=2, iteration=2, reason="a\x1bb"))
    with open_run(tmp_path / "run.h5") as run, writer:
        yield run


def axis_names(per):
    return [v.name for v in VARIABLES if v.axes == ((M,) if per == M else (M, per))]


@pytest.mark.parametrize("per", [M, P, T, B])
def test_every_value_stands_in_the_line_of_its_labels(run, per):
    columns = tidy_columns(run, per)
    assert set(axis_names(per)) <= columns.keys()
    assert {len(values) for values in columns.values()} == {LINES[per]}
    if per != M:
        labels = {P: run.pair_labels, T: run.tensor_names, B: run.block_names}[per]
        for line in range(LINES[per]):
            row = run["iteration"].tolist().index(columns["iteration"][line])
            column = labels.index(columns[per][line])
            for name in axis_names(per):
                np.testing.assert_equal(columns[name][line], run[name][row, column])


@pytest.mark.parametrize("per", [M, P, T, B])
def test_csv_reads_back_exactly(run, tmp_path, per):
    paths = {path.stem: path for path in write_csv(run, tmp_path)}
    with paths[per].open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    columns = tidy_columns(run, per)
    assert header == list(columns)
    for line, cells in enumerate(lines):
        for name, cell in zip(header, cells, strict=True):
            value = columns[name][line]
            if columns[name].dtype.kind == "f":
                np.testing.assert_equal(float(cell or "nan"), value)
            else:
                assert cell == str(value), name
    assert len(pd.read_csv(paths[per])) == len(lines) == LINES[per]


@pytest.mark.parametrize("per", [M, P, T, B])
def test_parquet_reads_back_with_units(run, tmp_path, per):
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = {path.stem: path for path in write_parquet(run, tmp_path)}
    table = parquet.read_table(paths[per])
    for name, values in tidy_columns(run, per).items():
        np.testing.assert_array_equal(table[name].to_numpy(), values, err_msg=name)
    assert table.schema.metadata[b"model_class"] == b"Net"
    known = {v.name: v.unit for v in VARIABLES}
    for name in set(table.column_names) & known.keys():
        assert table.schema.field(name).metadata[b"unit"].decode() == known[name]


def test_json_has_everything_and_only_numbers_of_json(run, tmp_path):
    write_json(run, tmp_path / "run.json")

    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    document = json.loads((tmp_path / "run.json").read_text("utf-8"), parse_constant=refuse)
    assert document["tensor"] == list(HOSTILE)
    assert not document["finished"]
    for variable in VARIABLES:
        entry = document["variables"][variable.name]
        assert entry["axes"] == list(variable.axes)
        values = run[variable.name]
        there = np.array(entry["values"], values.dtype if values.dtype != object else object)
        np.testing.assert_array_equal(there, values, err_msg=variable.name)


def test_the_copy_of_a_live_run_is_a_file_of_its_own(run, tmp_path):
    netcdf4 = pytest.importorskip("netCDF4")
    copy_run(run, tmp_path / "copy.nc")
    with netcdf4.Dataset(tmp_path / "copy.nc") as data, open_run(tmp_path / "copy.nc") as copy:
        assert data.dimensions["measurement"].size == 3
        for variable in VARIABLES:
            assert data[variable.name].dimensions == variable.axes
            np.testing.assert_array_equal(copy[variable.name], run[variable.name])
        np.testing.assert_array_equal(np.ma.filled(data["loss"][:], np.nan), run["loss"])
        assert not copy.live
    assert (tmp_path / "copy.nc").stat().st_size < run.path.stat().st_size / 2


def test_an_empty_run_has_headings_only(tmp_path, header):
    RunWriter(tmp_path / "run.h5", header).close()
    with open_run(tmp_path / "run.h5") as run:
        for path in write_csv(run, tmp_path):
            assert len(path.read_text("utf-8").splitlines()) == 1
        pytest.importorskip("pyarrow")
        for path in write_parquet(run, tmp_path):
            assert len(pd.read_parquet(path)) == 0
