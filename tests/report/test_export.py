"""Exports to trackers and images, read back by their own readers where these are installed."""

import importlib
import json
import shutil
import struct

import numpy as np
import pytest

from lipprof.errors import ConfigError, MissingExtraError, RunFileError
from lipprof.record import Measurement, Status
from lipprof.report.export import FORMATS, export
from lipprof.report.loggers import scalars

NEEDS = {"parquet": "pyarrow", "tensorboard": "tensorboard", "wandb": "wandb"}


def test_scalars_are_the_series_of_the_run(write_run):
    run = write_run()
    series = scalars(run)
    np.testing.assert_array_equal(series["loss"], run["loss"])
    np.testing.assert_array_equal(series["regret/bottom1"], run["regret"][:, -1])
    drift, sign = run["lipschitz_drift"], run["eigenvalue"] > 0
    by_hand = [max(row[mask], default=np.nan) for row, mask in zip(drift, sign, strict=True)]
    np.testing.assert_array_equal(series["lipschitz/positive"], by_hand)
    assert not {"iteration", "time", "reason"} & series.keys()


def test_tensorboard_reads_back(write_run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = write_run()
    (path,) = export(run, "tensorboard")
    assert path.parent == run.path.with_name("run-tensorboard")
    accumulator = EventAccumulator(str(path.parent), {"scalars": 0})
    accumulator.Reload()
    series = scalars(run)
    known = {name for name, values in series.items() if np.isfinite(values).any()}
    assert set(accumulator.Tags()["scalars"]) == known
    for name in known:
        events = accumulator.Scalars(name)
        here = np.flatnonzero(np.isfinite(series[name]))
        assert [e.step for e in events] == run["iteration"][here].tolist()
        assert [e.wall_time for e in events] == run["time"][here].tolist()
        there = np.array([e.value for e in events])
        np.testing.assert_array_equal(there, series[name][here].astype(np.float32))
    with pytest.raises(ConfigError, match="event files already"):
        export(run, "tensorboard")


def wandb_records(path):
    """Records of a W&B transaction log: LevelDB's log format after a header of 7 bytes."""
    wandb_internal_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in {1, 4}:  # whole, last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_wandb_offline_reads_back(write_run, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    run = write_run(count=9)
    (folder,) = export(run, "wandb")
    assert folder.is_relative_to(run.path.with_name("run-wandb"))
    wandb.teardown()  # its service writes in its own time, until the process ends
    (log,) = folder.glob("*.wandb")
    rows, config = [], {}
    for record in wandb_records(log):
        if record.WhichOneof("record_type") == "history":
            row = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            rows.append({key: json.loads(value) for key, value in row.items()})
        if record.WhichOneof("record_type") == "run":
            config |= {item.key: item.value_json for item in record.run.config.update}
    assert [row["iteration"] for row in rows] == run["iteration"].tolist()
    for name, values in scalars(run).items():
        there = [row.get(name, np.nan) for row in rows]
        np.testing.assert_array_equal(there, np.where(np.isfinite(values), values, np.nan))
    assert json.loads(config["model_class"]) == "GPT"
    assert json.loads(config["settings"])["top"] == run.top


@pytest.mark.browser
@pytest.mark.parametrize(("kind", "signature"), [("png", b"\x89PNG"), ("svg", b"<svg")])
def test_images_are_images(write_run, kind, signature):
    pytest.importorskip("kaleido")
    if not shutil.which("chromium") and not shutil.which("google-chrome"):
        pytest.skip("there is no Chromium")
    paths = export(write_run(count=5), kind)
    assert {"eigenvalues", "lipschitz", "trust"} <= {path.stem for path in paths}
    assert all(path.read_bytes().startswith(signature) for path in paths)


def test_each_goes_beside_the_run_or_where_it_is_told(write_run, tmp_path):
    run = write_run(count=3)
    assert export(run, "json") == [tmp_path / "run.json"]
    assert export(run, "netcdf", tmp_path / "a.nc") == [tmp_path / "a.nc"]
    names = ["measurement.csv", "pair.csv", "tensor.csv"]
    assert export(run, "csv") == [tmp_path / "run-csv" / name for name in names]


def test_what_cannot_be_written_is_told(write_run, tmp_path):
    run = write_run(count=3)
    before = run.path.read_bytes()
    with pytest.raises(ConfigError, match="is the run itself"):
        export(run, "netcdf", run.path)
    assert run.path.read_bytes() == before
    with pytest.raises(ConfigError, match="Cannot write"):
        export(run, "csv", run.path / "folder")
    with pytest.raises(ConfigError, match="Cannot write"):
        export(run, "json", tmp_path / "no" / "run.json")
    with pytest.raises(RunFileError, match="Cannot copy"):
        export(run, "netcdf", tmp_path / "no" / "run.nc")
    with pytest.raises(ConfigError, match="Unknown format 'xlsx'; known are csv"):
        export(run, "xlsx")


@pytest.mark.parametrize(
    ("to", "package"),
    [
        ("parquet", "pyarrow"),
        ("tensorboard", "tensorboard"),
        ("wandb", "wandb"),
        ("png", "kaleido"),
        ("svg", "kaleido"),
    ],
)
def test_missing_packages_are_told_with_the_command(write_run, monkeypatch, to, package):
    real = importlib.import_module

    def missing(name, *args):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=rf"`{package}`.*pip install 'lipprof\[\w+\]'"):
        export(write_run(count=2), to)


@pytest.mark.parametrize("to", sorted(FORMATS.keys() - {"png", "svg"}))
@pytest.mark.parametrize("count", [0, 2])
def test_empty_and_failed_runs(write_run, to, count):
    for package in {"parquet": ["pyarrow"], "netcdf": []}.get(
        to, [to] * (to in {"wandb", "tensorboard"})
    ):
        pytest.importorskip(package)
    bad = dict(pairs=5, tensors=39, status=Status.FAILED, reason="NaN")
    run = write_run(rows=[Measurement.blank(iteration=i, **bad) for i in range(count)])
    assert all(path.exists() for path in export(run, to))
