"""Reading a run: positions, answers, older files, and one clear line for everything else."""

import errno
import logging

import h5py
import numpy as np
import pytest

from lipprof.advice import Advisor, Evidence
from lipprof.errors import RunFileError
from lipprof.record import VARIABLES, Measurement, RunWriter, Status, open_run, repair
from lipprof.settings import Settings


@pytest.fixture
def path(tmp_path, header, make_measurement):
    """Return a finished run of five measurements."""
    with RunWriter(tmp_path / "run.h5", header) as writer:
        for i in range(5):
            writer.append(make_measurement(10 * i))
    return tmp_path / "run.h5"


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def test_positions(path, make_measurement, assert_same):
    with open_run(path) as run:
        assert_same(run.measurement(-5), make_measurement(0))
        assert_same(run.measurement(4), make_measurement(40))
        for index in (5, -6):
            with pytest.raises(RunFileError, match=rf"5 measurements; there is none .* {index}"):
                run.measurement(index)
        with pytest.raises(RunFileError, match="no variable 'sharpness'; known are iteration"):
            run["sharpness"]
        with pytest.raises(ValueError, match="read-only"):
            run["loss"][0] = 1.0


def test_iteration_crosses_blocks(tmp_path, make_header, make_measurement, assert_same):
    with RunWriter(tmp_path / "run.h5", make_header()) as writer:
        for i in range(70):
            writer.append(make_measurement(i))
    back = list(open_run(tmp_path / "run.h5"))
    assert [m.iteration for m in back] == list(range(70))
    assert_same(back[69], make_measurement(69))


def test_an_empty_run(tmp_path, header):
    RunWriter(tmp_path / "run.h5", header).close()
    with open_run(tmp_path / "run.h5") as run:
        assert len(run) == 0
        assert list(run) == []
        assert run["eigenvector_mass"].shape == (0, 3, 3)
        assert run["reason"].shape == (0,)
        assert "0 measurements, 2+1 eigenpairs, 3 tensors, finished" in repr(run)
        with pytest.raises(RunFileError, match="there is none at position -1"):
            run.recommendation()
    assert repair(tmp_path / "run.h5") == 0
    assert "closed" in repr(run)


def test_a_closed_run_says_so(path):
    run = open_run(path)
    run["loss"]
    run.close()
    run.close()
    assert len(run["loss"]) == 5
    for read in (lambda: run["eigenvalue"], lambda: run.finished, run.refresh):
        with pytest.raises(RunFileError, match="was closed"):
            read()


def test_an_older_file_reads_as_not_computed(path):
    def forget(file):
        for name in ("regret", "reason", "assigned", "eigenvector_mass"):
            del file[name]

    edit(path, forget)
    with open_run(path) as run:
        assert np.isnan(run["regret"]).all()
        assert run["regret"].shape == (5, 3)
        assert run["reason"].tolist() == [""] * 5
        assert run.measurement(2).assigned.tolist() == [0, 0, 0]
    with RunWriter.resume(path) as writer:
        writer.append(
            Measurement.blank(pairs=3, tensors=3, blocks=2, iteration=50, regret=np.ones(3))
        )
    with open_run(path) as run:
        assert np.isnan(run["regret"][:5]).all()
        assert (run["regret"][5] == 1).all()
        assert run["reason"].tolist() == [""] * 6


def test_repair_keeps_what_this_version_does_not_know(path):
    def add(file):
        future = file.create_dataset("future", data=np.arange(15.0).reshape(5, 3))
        future.dims[0].attach_scale(file["measurement"])
        future.dims[1].attach_scale(file["pair"])
        future.attrs["units"] = "param"
        file["n_valid"][()] = 4

    edit(path, add)
    before = open_run(path)
    assert repair(path) == 4
    with h5py.File(path) as file:
        assert file["future"][:].tolist() == np.arange(12.0).reshape(4, 3).tolist()
        assert file["future"].attrs["units"] == "param"
        assert [next(iter(axis.values())).name for axis in file["future"].dims] == [
            "/measurement",
            "/pair",
        ]
    after = open_run(path)
    assert after.attrs == before.attrs
    for variable in VARIABLES:
        np.testing.assert_array_equal(after[variable.name], before[variable.name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensor_names": ("conv.weight", "conv.bias", "tail")}, r"\('head.weight', 12\) there"),
        ({"tensor_numel": (40, 4, 13)}, r"\('head.weight', 13\) here"),
        ({"top": 3}, r"2\+1 eigenpairs and 2 blocks, this run has 3, 3\+1 and 2"),
        ({"blocks": ("conv*",)}, r"and 2 blocks, this run has 3, 2\+1 and 1"),
    ],
)
def test_resuming_other_tensors_is_refused(path, make_header, changes, message):
    with pytest.raises(RunFileError, match=message):
        RunWriter.resume(path, make_header(**changes))
    assert open_run(path).finished
    assert [p.name for p in path.parent.iterdir()] == ["run.h5"]


def test_resuming_goes_on_counting(path, header):
    before = open_run(path)
    with RunWriter.resume(path, header, swmr=False) as writer:
        assert len(writer) == 5
    after = open_run(path)
    assert after.run_seconds > before.run_seconds > 0
    assert after.attrs == before.attrs


def test_resuming_nothing_is_refused(tmp_path):
    with pytest.raises(RunFileError, match=r"no run file .*gone\.h5 to resume"):
        RunWriter.resume(tmp_path / "gone.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rule", ["newton-safe", "threshold"])
def test_recommendation_is_what_the_advisor_said(tmp_path, make_header, rule):
    """The series of a noisy run, with failures in between: the advisor's own answers come back."""
    rng = np.random.default_rng(3)
    settings = Settings(top=0, bottom=0, rule=rule, threshold=0.5, dwell=1, hysteresis=1.0)
    header = make_header(top=0, bottom=0, settings=settings.to_toml())
    advisor = Advisor(header.tensor_names, rule=rule, threshold=0.5, dwell=1, hysteresis=1.0)
    said = []
    with RunWriter(tmp_path / "run.h5", header) as writer:
        for i in range(30):
            row = {"status": Status.FAILED}
            if i % 4 != 1:
                numbers = {name: rng.random(3) for name in ("lipschitz", "curvature", "slope")}
                numbers["lipschitz"][i < 2 * np.arange(3)] = np.nan  # answers begin one by one
                limit = rng.random(3)
                sizes = header.tensor_numel
                said.append(
                    advisor.advise(
                        Evidence.exact(i, header.tensor_names, sizes, threshold=limit, **numbers)
                    )
                )
                row = {f"tensor_{name}": value for name, value in numbers.items()}
                row |= {"tensor_threshold": limit, "recommendation": said[-1].choice}
                row["tensor_lipschitz_upper"] = numbers["lipschitz"]
                row |= {"tensor_threshold_low": limit, "tensor_threshold_high": limit}
            elif said:
                said.append(said[-1])
            writer.append(Measurement.blank(pairs=0, tensors=3, blocks=2, iteration=i, **row))
    with open_run(tmp_path / "run.h5") as run:
        for i, expected in enumerate(said):
            back = run.recommendation(i)
            assert (back.iteration, back.rule) == (expected.iteration, expected.rule)
            assert list(back.names) == list(expected.names)
            for name in ["numel", "choice", "low", "high", "threshold", "stable_for"]:
                np.testing.assert_array_equal(
                    getattr(back, name), getattr(expected, name), err_msg=f"{name} at {i}"
                )
            for name in ["lipschitz", "threshold", "curvature", "slope"]:
                np.testing.assert_array_equal(
                    getattr(back.evidence, name), getattr(expected.evidence, name)
                )
        assert run.recommendation().iteration == said[-1].iteration


def test_no_recommendation_yet(tmp_path, header):
    with RunWriter(tmp_path / "run.h5", header) as writer:
        writer.append(Measurement.blank(pairs=3, tensors=3, blocks=2, iteration=0))
    with pytest.raises(RunFileError, match="no recommendation in its first 1 measurements"):
        open_run(tmp_path / "run.h5").recommendation()


def test_missing_folder_and_foreign_files(tmp_path):
    with pytest.raises(RunFileError, match=r"no run file .*gone\.h5"):
        open_run(tmp_path / "gone.h5")
    with pytest.raises(RunFileError, match="is a folder; expected a run file inside it"):
        open_run(tmp_path)
    (tmp_path / "text.h5").write_text("loss,iteration\n")
    with pytest.raises(RunFileError, match=r"text\.h5 is not an HDF5 file"):
        open_run(tmp_path / "text.h5")
    (tmp_path / "empty.h5").touch()
    with pytest.raises(RunFileError, match=r"empty\.h5 is not an HDF5 file"):
        repair(tmp_path / "empty.h5")
    h5py.File(tmp_path / "other.h5", "w").close()
    with pytest.raises(RunFileError, match="not a run of lipprof: it has no `schema_version`"):
        open_run(tmp_path / "other.h5")


def test_newer_schema(path):
    edit(path, lambda file: file.attrs.update(schema_version=2, lipprof_version="9.0"))
    with pytest.raises(RunFileError, match=r"schema 2, written by lipprof 9\.0.*reads up to 1"):
        open_run(path)


@pytest.mark.parametrize("toml", ["every = [[[", "colour = 3", "every = 0", "a = " + "[" * 9999])
def test_unreadable_settings(tmp_path, make_header, toml):
    RunWriter(tmp_path / "run.h5", make_header(settings=toml)).close()
    with open_run(tmp_path / "run.h5") as run, pytest.raises(RunFileError, match="settings in"):
        _ = run.settings


def test_a_file_system_without_locks(path, header, monkeypatch, caplog):
    real = h5py.File

    def without_locks(*args, **kwargs):
        if kwargs.get("locking") != "best-effort":
            raise OSError(errno.ENOLCK, "No locks available")
        return real(*args, **kwargs)

    monkeypatch.setattr(h5py, "File", without_locks)
    with caplog.at_level(logging.WARNING, "lipprof"):
        assert len(open_run(path)) == 5
    assert "has no locks: opened without" in caplog.text
