"""The trace of calibration in the run file: written, followed live, resumed, repaired, damaged."""

import h5py
import pytest

from lipprof.advice import Outcome
from lipprof.errors import RunFileError
from lipprof.record import CalibrationReading, RunWriter, open_run, repair
from lipprof.record.calibration import CALIBRATION


def reading(k, **fields):
    numbers = dict(learning_rate=0.1 * k, factor=k, room=9.0 / (k + 1), slope=1.0, curvature=-k)
    common = dict(iteration=2 * k, side=k % 2, bend=0.5, num_gradients=2, seconds=0.25)
    return CalibrationReading(**(numbers | common | {"outcome": Outcome.GROWING} | fields))


@pytest.mark.parametrize("swmr", [True, False])
def test_readings_come_back(tmp_path, make_header, swmr):
    path = tmp_path / "run.h5"
    written = [reading(k) for k in range(5)]
    with RunWriter(path, make_header(calibrated=True), swmr=swmr) as writer:
        for row in written:
            writer.append_aside(row)
    with open_run(path) as run:
        assert run.calibration == written


def test_a_live_file_shows_what_is_there(tmp_path, make_header):
    path = tmp_path / "run.h5"
    with RunWriter(path, make_header(calibrated=True)) as writer, open_run(path) as run:
        assert run.calibration == []
        for k in range(3):
            writer.append_aside(reading(k))
            assert run.calibration == [reading(i) for i in range(k + 1)]


def test_a_run_that_is_not_calibrated_has_none(tmp_path, header):
    path = tmp_path / "run.h5"
    with RunWriter(path, header) as writer:
        writer.append_aside(reading(0))
    with open_run(path) as run:
        assert run.calibration == []


def test_a_resumed_and_a_repaired_run_keep_it(tmp_path, make_header, header, make_measurement):
    path = tmp_path / "run.h5"
    with RunWriter(path, make_header(calibrated=True)) as writer:
        writer.append_aside(reading(0))
    with RunWriter.resume(path, header) as writer:
        writer.append_aside(reading(1))
        writer.append(make_measurement(7))
    repair(path)
    with open_run(path) as run:
        assert run.calibration == [reading(0), reading(1)]
        assert len(run) == 1


def test_calibration_may_begin_in_a_resumed_run(tmp_path, make_header, header):
    path = tmp_path / "run.h5"
    RunWriter(path, header).close()
    with RunWriter.resume(path, make_header(calibrated=True)) as writer:
        writer.append_aside(reading(0))
    with open_run(path) as run:
        assert run.calibration == [reading(0)]


def test_more_readings_than_the_table_has_are_dropped(tmp_path, make_header):
    path = tmp_path / "run.h5"
    with RunWriter(path, make_header(calibrated=True)) as writer:
        for k in range(CALIBRATION.length + 3):
            writer.append_aside(reading(k))
    with open_run(path) as run:
        assert len(run.calibration) == CALIBRATION.length


def test_an_unknown_outcome_is_damage(tmp_path, make_header):
    path = tmp_path / "run.h5"
    with RunWriter(path, make_header(calibrated=True)) as writer:
        writer.append_aside(reading(0))
    with h5py.File(path, "r+") as file:
        file["calibration_outcome"][0] = 99
    with open_run(path) as run, pytest.raises(RunFileError, match="calibration is damaged"):
        _ = run.calibration
