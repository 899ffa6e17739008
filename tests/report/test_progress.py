"""How far a run is: against runs whose clock is known to the second."""

import numpy as np
import pytest

from lipprof.record import Measurement, RunWriter, open_run
from lipprof.report.progress import State, progress
from lipprof.settings import Settings
from tests.headers import run_header

START = 1.7e9


def write(path, times, *, every=10, until=None, at=None):
    settings = Settings(top=1, bottom=0, every=every, until=until, at=at).to_toml()
    header = run_header(
        top=1, bottom=0, tensor_names=("w",), tensor_numel=(4,), model_class="Net", probe="8",
        settings=settings,
    )  # fmt: skip
    writer = RunWriter(path, header)
    for i, seconds in enumerate(times):
        row = Measurement.blank(pairs=1, tensors=1, iteration=every * i, time=START + seconds)
        writer.append(row)
    return writer


def look(path, now):
    with open_run(path) as run:
        return progress(run, START + now)


def test_a_live_run_with_a_known_end(tmp_path):
    with write(tmp_path / "run.h5", [0, 20, 40], until=100):
        where = look(tmp_path / "run.h5", 45)
    assert where.state is State.LIVE
    assert (where.iteration, where.last, where.share) == (20, 100, 0.2)
    assert where.since_measurement == pytest.approx(5)
    assert where.seconds_left == pytest.approx(80 * 2 - 5)


def test_the_pace_is_that_of_most_intervals(tmp_path):
    with write(tmp_path / "run.h5", [0, 20, 5000, 5020, 5040], at=(0, 10, 20, 30, 40, 90)):
        where = look(tmp_path / "run.h5", 5040)
    assert where.last == 90
    assert where.seconds_left == pytest.approx(50 * 2)


@pytest.mark.parametrize("times", [[], [0], [np.nan, np.nan]])
def test_what_is_not_known_is_not_told(tmp_path, times):
    with write(tmp_path / "run.h5", times, until=100):
        where = look(tmp_path / "run.h5", 5)
    assert np.isnan(where.seconds_left)
    assert where.last == 100


def test_without_an_end_there_is_no_time_left(tmp_path):
    with write(tmp_path / "run.h5", [0, 20]):
        where = look(tmp_path / "run.h5", 20)
    assert where.last is None
    assert np.isnan(where.seconds_left)
    assert np.isnan(where.share)


def test_late_is_zero_seconds_left(tmp_path):
    with write(tmp_path / "run.h5", [0, 20], until=20):
        assert look(tmp_path / "run.h5", 900).seconds_left == 0


def test_finished_and_stopped(tmp_path):
    write(tmp_path / "run.h5", [0, 20], until=100).close()
    where = look(tmp_path / "run.h5", 30)
    assert where.state is State.FINISHED
    assert np.isnan(where.seconds_left)
    with RunWriter.resume(tmp_path / "run.h5") as writer:
        (tmp_path / "killed.h5").write_bytes((tmp_path / "run.h5").read_bytes())
        assert len(writer) == 2
    assert look(tmp_path / "killed.h5", 30).state is State.STOPPED
