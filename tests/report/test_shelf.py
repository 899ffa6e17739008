"""The shelf of runs: read again only where something changed, and nothing stays open."""

import os

import pytest

from lipprof.record import RunWriter
from lipprof.report.live import shelf as shelf_module
from lipprof.report.live.shelf import Shelf, newest
from tests.report.conftest import header, measurements

NAMES, NUMEL = ("body", "head"), (300, 100)


@pytest.fixture
def reads(monkeypatch):
    """Count which files are opened."""
    opened = []
    real = shelf_module.open_run

    def counted(path):
        opened.append(path.name)
        return real(path)

    monkeypatch.setattr(shelf_module, "open_run", counted)
    return opened


def write(path, count=3, **changes):
    with RunWriter(path, header(NAMES, NUMEL, **changes)) as writer:
        for row in measurements(NAMES, NUMEL, count):
            writer.append(row)


def age(path, seconds=60):
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))


def test_only_what_changed_is_read_again(tmp_path, reads):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.h5")
        age(tmp_path / f"{name}.h5")
    shelf = Shelf(tmp_path)
    first = shelf.look()
    assert reads == ["a.h5", "b.h5"]
    assert shelf.look() == first
    assert reads == ["a.h5", "b.h5"]
    with RunWriter.resume(tmp_path / "b.h5") as writer:
        *_, last = measurements(NAMES, NUMEL, 4)
        writer.append(last)
        second = shelf.look()
    assert reads[2:] == ["b.h5"]
    assert second[0].version == first[0].version
    assert second[1].version != first[1].version
    assert "running · iteration 300" in second[1].state


def test_a_file_that_just_changed_is_not_trusted_to_be_settled(tmp_path, reads, monkeypatch):
    write(tmp_path / "a.h5")
    changed = (tmp_path / "a.h5").stat().st_mtime
    monkeypatch.setattr(shelf_module.time, "time", lambda: changed + 0.01)
    shelf = Shelf(tmp_path)
    first, second = shelf.look(), shelf.look()
    assert reads == ["a.h5", "a.h5"]
    assert first[0].version == second[0].version, "nothing is drawn again for it"
    monkeypatch.setattr(shelf_module.time, "time", lambda: changed + 10)
    shelf.look()
    shelf.look()
    assert len(reads) == 3


def test_runs_appear_finish_are_killed_replaced_and_vanish(tmp_path):
    shelf = Shelf(tmp_path)
    assert shelf.look() == []
    path = tmp_path / "a.h5"
    writer = RunWriter(path, header(NAMES, NUMEL))
    assert shelf.look()[0].state == "running"
    copy = path.read_bytes()
    writer.close()
    assert shelf.look()[0].state == "finished"
    path.write_bytes(copy)
    assert "stopped before its end" in shelf.look()[0].state
    path.unlink()
    write(path, count=2)
    (run,) = shelf.look()
    assert run.state.startswith("finished · iteration 100 · loss")
    path.write_text("not a run")
    (run,) = shelf.look()
    assert "is not an HDF5 file" in run.state
    assert run.track is None
    path.unlink()
    assert shelf.look() == []


def test_nothing_stays_open(tmp_path):
    write(tmp_path / "a.h5")
    Shelf(tmp_path).look()
    here = {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
    assert str(tmp_path / "a.h5") not in here


def test_one_file_that_does_not_exist_yet(tmp_path):
    shelf = Shelf(tmp_path / "run.h5")
    (run,) = shelf.look()
    assert run.state == "there is no such file yet"
    assert newest([run]) is None
    write(tmp_path / "run.h5")
    assert newest(shelf.look()).name == "run"


def test_the_newest_run_is_chosen(tmp_path):
    for name in ("c", "a", "b"):
        write(tmp_path / f"{name}.h5")
    age(tmp_path / "a.h5")
    age(tmp_path / "b.h5", 30)
    assert newest(Shelf(tmp_path).look()).name == "c"
