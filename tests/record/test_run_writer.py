"""What the writer puts into the file comes back, and nothing that was there is lost."""

import dataclasses
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipprof.errors import RunFileError, ShapeError
from lipprof.record import VARIABLES, Measurement, RunHeader, RunWriter, Status, open_run, repair

TEXTS = ("model_class", "optimizer_class", "device", "precision", "source", "probe", "settings")


def test_schema_and_measurement_are_in_step():
    assert {v.name for v in VARIABLES} == {f.name for f in dataclasses.fields(Measurement)}
    blank = Measurement.blank(pairs=2, tensors=5, blocks=3, iteration=0)
    sizes = {"pair": 2, "tensor": 5, "block": 3}
    for variable in VARIABLES:
        expected = tuple(sizes[axis] for axis in variable.axes[1:])
        assert np.shape(getattr(blank, variable.name)) == expected, variable.name


@pytest.mark.parametrize("swmr", [True, False])
def test_every_field_comes_back(tmp_path, header, make_measurement, assert_same, swmr):
    written = [make_measurement(i) for i in range(0, 280, 7)]
    with RunWriter(tmp_path / "run.h5", header, swmr=swmr) as writer:
        for measurement in written:
            writer.append(measurement)
    with open_run(tmp_path / "run.h5") as run:
        assert len(run) == len(written)
        for there, back in zip(written, run, strict=True):
            assert_same(there, back)
        assert_same(written[3], run.measurement(3))
        assert_same(written[-1], run.measurement(-1))
        for variable in VARIABLES:
            series = np.array([getattr(m, variable.name) for m in written])
            np.testing.assert_array_equal(run[variable.name], series, err_msg=variable.name)


def test_header_comes_back(tmp_path, make_header):
    header = make_header(extra={"paper": "Fig. 1", "depth": 3, "shuffled": True, "lr": 0.5})
    RunWriter(tmp_path / "run.h5", header).close()
    with open_run(tmp_path / "run.h5") as run:
        assert run.tensor_names == list(header.tensor_names)
        assert run.tensor_numel.tolist() == list(header.tensor_numel)
        assert run.pair_labels == ["top1", "top2", "bottom1"]
        assert (run.top, run.bottom, run.attrs["n"]) == (2, 1, 56)
        assert run.settings.top == 2
        for name in TEXTS:
            assert run.attrs[name] == getattr(header, name)
        assert [run.attrs[k] for k in ("paper", "depth", "shuffled", "lr")] == ["Fig. 1", 3, 1, 0.5]
        assert run.attrs["torch_version"].startswith("2.")


texts = st.text(max_size=300)


@settings(max_examples=15, deadline=None)
@given(names=st.lists(texts, min_size=1, max_size=4, unique=True), reason=texts)
def test_any_text_survives(names, reason):
    blank = dict.fromkeys(TEXTS, "") | {"model_class": reason}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.h5"
        header = RunHeader(
            tensor_names=tuple(names), tensor_numel=(1,) * len(names), top=0, bottom=0, **blank
        )
        with RunWriter(path, header) as writer:
            row = Measurement.blank(pairs=0, tensors=len(names), iteration=0, reason=reason)
            writer.append(row)
        with open_run(path) as run:
            assert run.tensor_names == [name.replace("\0", "\\x00") for name in names]
            assert run.attrs["model_class"] == reason.replace("\0", "\\x00")
            back = run.measurement(0).reason
    assert reason.replace("\0", "\\x00").startswith(back)
    assert len(back.encode()) >= min(len(reason.encode()), 237)  # at most one character is cut


def test_very_long_names_stay_apart(tmp_path, make_header):
    names = tuple("block." * 200 + suffix for suffix in ("weight", "bias", "gain"))
    RunWriter(tmp_path / "run.h5", make_header(tensor_names=names)).close()
    assert open_run(tmp_path / "run.h5").tensor_names == list(names)


def test_a_run_without_eigenpairs(tmp_path, make_header, make_measurement):
    with RunWriter(tmp_path / "run.h5", make_header(top=0, bottom=0)) as writer:
        writer.append(make_measurement(0, pairs=0))
        writer.append(make_measurement(1, pairs=0))
    run = open_run(tmp_path / "run.h5")
    assert run["eigenvalue"].shape == (2, 0)
    assert run["eigenvector_mass"].shape == (2, 0, 3)


def test_existing_files_are_moved_aside(tmp_path, header, make_measurement, caplog):
    path = tmp_path / "run.h5"
    path.write_text("not even a run")
    (tmp_path / "run.1.h5").write_text("taken")
    with caplog.at_level(logging.WARNING, "lipprof"):
        with RunWriter(path, header) as writer:
            writer.append(make_measurement(0))
        RunWriter(path, header).close()
    assert (tmp_path / "run.1.h5").read_text() == "taken"
    assert (tmp_path / "run.2.h5").read_text() == "not even a run"
    assert len(open_run(tmp_path / "run.3.h5")) == 1
    assert "moved to run.2.h5" in caplog.text
    assert "moved to run.3.h5" in caplog.text


def test_a_rejected_header_leaves_the_old_run_in_place(tmp_path, make_header):
    path = tmp_path / "run.h5"
    path.write_text("old")
    with pytest.raises(RunFileError, match=r"extra attribute settings=.*expected a string"):
        RunWriter(path, make_header(extra={"settings": "x"}))
    with pytest.raises(RunFileError, match="extra attribute list="):
        RunWriter(path, make_header(extra={"list": [1]}))
    with pytest.raises(RunFileError, match="names 3 tensors but gives 2 sizes"):
        RunWriter(path, make_header(tensor_numel=(1, 2)))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_writer_is_refused(tmp_path, header):
    path = tmp_path / "deep" / "run.h5"
    with RunWriter(path, header):
        with pytest.raises(RunFileError, match=r"run\.h5 is being written by another live process"):
            RunWriter(path, header)
        assert (path.parent / "run.h5.lock").exists()
    assert sorted(p.name for p in path.parent.iterdir()) == ["run.h5"]
    RunWriter(path, header).close()


def test_a_folder_is_not_a_run_file(tmp_path, header):
    with pytest.raises(RunFileError, match="exists and is not a file"):
        RunWriter(tmp_path, header)
    assert tmp_path.is_dir()


@pytest.mark.parametrize("field", ["eigenvalue", "eigenvector_mass", "recommendation", "loss"])
def test_a_wrong_shape_writes_nothing(tmp_path, header, make_measurement, field):
    with RunWriter(tmp_path / "run.h5", header) as writer:
        writer.append(make_measurement(0))
        with pytest.raises(ShapeError, match=rf"`{field}` .*iteration 1 has shape \(7,\)"):
            writer.append(make_measurement(1, **{field: np.zeros(7)}))
        writer.append(make_measurement(2))
    assert open_run(tmp_path / "run.h5")["iteration"].tolist() == [0, 2]


def test_close_is_final_and_idempotent(tmp_path, header, make_measurement):
    path = tmp_path / "run.h5"
    writer = RunWriter(path, header)
    writer.append(make_measurement(0))
    run = open_run(path)
    assert not run.finished
    first = run.run_seconds
    writer.close()
    writer.close()
    with pytest.raises(RunFileError, match="was closed"):
        writer.append(make_measurement(1))
    run = open_run(path)
    assert run.finished
    assert 0 < first < run.run_seconds < 60


def test_nothing_is_created_after_the_start(tmp_path, header, make_measurement):
    def objects():
        with h5py.File(tmp_path / "run.h5", "r", swmr=True) as file:
            return {name: set(item.attrs) for name, item in file.items()} | {"/": set(file.attrs)}

    with RunWriter(tmp_path / "run.h5", header) as writer:
        before = objects()
        writer.append(make_measurement(0, status=Status.FAILED, reason="out of memory"))
        assert objects() == before
    assert objects() == before
    assert {v.name for v in VARIABLES} < set(before)


def test_every_axis_has_a_dimension_scale(tmp_path, header):
    RunWriter(tmp_path / "run.h5", header).close()
    with h5py.File(tmp_path / "run.h5") as file:
        for variable in VARIABLES:
            scales = [next(iter(axis.values())).name for axis in file[variable.name].dims]
            assert scales == [f"/{axis}" for axis in variable.axes]
            assert file[variable.name].attrs["units"] == variable.unit
        assert file["status"].attrs["flag_meanings"] == "converged unconverged failed"
        assert file["status"].attrs["flag_values"].tolist() == [0, 1, 2]


FULL_DISK = """
import resource, sys
import numpy as np
from lipprof.errors import RunFileError
from lipprof.record import Measurement, RunHeader, RunWriter
texts = "model_class optimizer_class device precision source probe settings".split()
names = tuple(map(str, range(500)))
header = RunHeader(
    tensor_names=names, tensor_numel=(1,) * 500, top=2, bottom=2, **dict.fromkeys(texts, "")
)
writer = RunWriter(sys.argv[1], header)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    for i in range(1000):
        mass = np.ones((4, 500))
        writer.append(
            Measurement.blank(pairs=4, tensors=500, iteration=i, eigenvector_mass=mass)
        )
        print(i, flush=True)
except RunFileError as error:
    print(error, file=sys.stderr)
writer.close()
"""


def test_a_full_disk_is_reported_and_costs_only_the_row_in_flight(tmp_path):
    path = tmp_path / "run.h5"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert f"Cannot append to {path}" in done.stderr
    reported = [int(line) for line in done.stdout.split()]
    assert 5 < len(reported) < 100
    assert open_run(path)["iteration"].tolist() == reported
    assert repair(path) == len(reported)


def test_what_was_never_computed_takes_no_room(tmp_path, make_header, make_measurement):
    header = make_header(tensor_names=tuple(f"t{i}" for i in range(3000)), tensor_numel=(1,) * 3000)
    sizes = []
    for computed in (True, False):
        path = tmp_path / f"{computed}.h5"
        with RunWriter(path, header) as writer:
            for iteration in range(20):
                fields = {} if computed else {"lipschitz_mass": np.full((3, 3000), np.nan)}
                writer.append(make_measurement(iteration, tensors=3000, **fields))
        sizes.append(path.stat().st_size)
        with open_run(path) as run:
            assert np.isnan(run["lipschitz_mass"]).all() == (not computed)
    assert sizes[0] - sizes[1] > 20 * 3 * 3000 * 8 * 0.9
