"""kill -9 at any moment, and readers that follow while another process writes."""

import os
import random
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from lipprof.errors import RunFileError
from lipprof.record import RunWriter, open_run, repair

WRITER = """
import random, sys, time
import numpy as np
from lipprof.record import Measurement, RunHeader, RunWriter
path, swmr, rows, pause = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3]), float(sys.argv[4])
texts = "model_class optimizer_class device precision source probe settings".split()
names = tuple(f"layer.{i}" for i in range(50))
header = RunHeader(
    tensor_names=names, tensor_numel=(2,) * 50, top=3, bottom=2, **dict.fromkeys(texts, "")
)
assert "torch" not in sys.modules
writer = RunWriter(path, header, swmr=swmr)
for i in range(rows):
    writer.append(
        Measurement.blank(
            pairs=5,
            tensors=50,
            iteration=i,
            loss=i / 8,
            reason=f"row {i}",
            eigenvalue=i + np.arange(5.0),
            eigenvector_mass=i + np.arange(250.0).reshape(5, 50),
            recommendation=np.full(50, i % 3, np.int8),
        )
    )
    print(i, flush=True)
    time.sleep(random.random() * pause)
writer.close()
"""


def start_writer(path, *, swmr=True, rows=10**6, pause=0.004):
    command = [sys.executable, "-c", WRITER, str(path), str(swmr), str(rows), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def require_rows(run):
    """Every visible row holds what the writer put there."""
    rows = np.arange(len(run))
    np.testing.assert_array_equal(run["iteration"], rows)
    np.testing.assert_array_equal(run["loss"], rows / 8)
    np.testing.assert_array_equal(run["eigenvalue"], rows[:, None] + np.arange(5.0))
    mass = rows[:, None, None] + np.arange(250.0).reshape(5, 50)
    np.testing.assert_array_equal(run["eigenvector_mass"], mass)
    np.testing.assert_array_equal(run["recommendation"], np.tile(rows[:, None] % 3, 50))
    assert run["reason"].tolist() == [f"row {i}" for i in rows]


def kill_at_random(path, seed, *, swmr):
    """Kill a writer within 150 ms of its first append.

    Returns:
        How many appends it had reported.
    """
    with start_writer(path, swmr=swmr) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        time.sleep(random.Random(seed).uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        return 1 + len(process.stdout.readlines())


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 20))]
)
def test_sigkill_loses_at_most_the_row_in_flight(tmp_path, seed):
    path = tmp_path / "run.h5"
    swmr = seed % 4 != 3
    reported = kill_at_random(path, seed, swmr=swmr)
    with open_run(path) as run:
        assert reported <= len(run) <= reported + 1
        assert not run.finished
        require_rows(run)


@pytest.mark.parametrize("swmr", [True, False])
def test_repair_and_resume_after_sigkill(tmp_path, swmr):
    path = tmp_path / "run.h5"
    reported = kill_at_random(path, 0, swmr=swmr)
    if swmr:
        with pytest.raises(OSError, match="already open for write"):
            h5py.File(path, "r+")
    rows = repair(path)
    assert reported <= rows <= reported + 1
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]
    with h5py.File(path, "r+") as file:
        assert {len(file[name]) for name in ("measurement", "eigenvalue", "loss")} == {rows}
    with RunWriter.resume(path) as out:
        last = open_run(path).measurement(-1)
        out.append(last)
    with open_run(path) as run:
        assert run.finished
        assert run["iteration"].tolist() == [*range(rows), rows - 1]


def test_a_reader_follows_a_live_writer(tmp_path):
    path = tmp_path / "run.h5"
    with start_writer(path, rows=60) as process:
        process.stdout.readline()
        with open_run(path) as run:
            seen, refreshes = len(run), 0
            assert not run.finished
            while not run.finished:
                new = run.refresh()
                seen += new
                refreshes += new > 0
                assert len(run) == seen
                require_rows(run)
            run.refresh()
            assert len(run) == 60
            require_rows(run)
        assert process.wait(30) == 0
    assert refreshes > 3


def test_a_reader_follows_a_run_that_is_resumed(tmp_path, header, make_measurement):
    path = tmp_path / "run.h5"
    with RunWriter(path, header) as out:
        out.append(make_measurement(0))
    with open_run(path) as run:
        assert run["iteration"].tolist() == [0]
        with RunWriter.resume(path, header) as out:
            assert len(out) == 1
            out.append(make_measurement(1))
            assert run.refresh() == 1
            assert run["iteration"].tolist() == [0, 1]
            out.append(make_measurement(2))
            assert run.refresh() == 1
            assert run.refresh() == 0
        time.sleep(1.0)  # `created` is in seconds
        with RunWriter(path, header) as out:
            out.append(make_measurement(5))
        assert run.refresh() == 1
        assert run["iteration"].tolist() == [5]


def test_a_file_that_is_being_created_is_waited_for(tmp_path):
    path = tmp_path / "run.h5"
    slow = WRITER.replace(
        "writer = RunWriter(",
        "import lipprof.record.writer as w\n"
        "real = w.create_layout\n"
        "w.create_layout = lambda *a: (print('started', flush=True), time.sleep(0.3), real(*a))\n"
        "writer = RunWriter(",
    )
    command = [sys.executable, "-c", slow, str(path), "True", "0", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        assert len(open_run(path)) == 0
    assert process.returncode == 0


def test_a_file_whose_creation_was_killed_is_reported(tmp_path):
    path = tmp_path / "run.h5"
    script = WRITER.replace(
        "writer = RunWriter(",
        "import os, lipprof.record.writer as w\n"
        "w.RunWriter._freeze = lambda *_: os.kill(os.getpid(), 9)\nwriter = RunWriter(",
    )
    command = [sys.executable, "-c", script, str(path), "True", "1", "0"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    with pytest.raises(RunFileError, match=r"run\.h5 is damaged"):
        open_run(path)


def test_a_writer_without_swmr_cannot_be_followed(tmp_path):
    path = tmp_path / "run.h5"
    with start_writer(path, swmr=False) as process:
        process.stdout.readline()
        with pytest.raises(RunFileError, match=r"open for writing .* swmr=False"):
            open_run(path)
        os.kill(process.pid, signal.SIGKILL)
    require_rows(open_run(path))


def test_repair_refuses_a_live_writer(tmp_path):
    path = tmp_path / "run.h5"
    with start_writer(path) as process:
        process.stdout.readline()
        with pytest.raises(RunFileError, match="another live process"):
            repair(path)
        with pytest.raises(RunFileError, match="another live process"):
            RunWriter.resume(path)
        process.kill()
