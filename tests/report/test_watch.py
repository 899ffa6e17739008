"""The live view through the life of a file: absent, created, growing, finished, replaced."""

import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from lipprof.record import Measurement, RunWriter, Status
from lipprof.report import watch
from lipprof.report.derived import switches
from tests.report.conftest import header, measurements

NAMES, NUMEL = ("body.weight", "head.weight"), (300, 100)


def text(path, now=1.7e9 + 200, width=110):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(watch.look(path, now))
    return capture.get()


def test_the_life_of_a_file(tmp_path):
    path = tmp_path / "run.h5"
    assert text(path, width=500).startswith(f"Waiting for {path}: there is no such file yet.")
    path.write_bytes(b"")
    assert text(path).startswith("Waiting: ")
    path.unlink()
    with RunWriter(path, header(NAMES, NUMEL)) as writer:
        assert "running" in text(path)
        assert "Nothing measured yet." in text(path)
        for row in measurements(NAMES, NUMEL, 3):
            writer.append(row)
            assert f"iteration {row.iteration:,};" in text(path)
        assert "measured 1 min 20 s ago" in text(path)
        copy = path.read_bytes()
    assert "finished" in text(path)
    path.write_bytes(copy)
    assert "stopped before its end" in text(path)
    path.unlink()
    with RunWriter(path, header(["other"], [5], model_class="Other")):
        assert "Other" in text(path)


def test_a_frame_has_the_answer_the_series_and_the_pairs(write_run):
    frame = text(write_run().path)
    assert "recommended  first-order: " in frame
    for row in ("loss", "λ largest", "λ smallest", "L⁺", "L⁻", "first-order share", "bottom1"):
        assert f"\n{row}" in frame
    assert "failed 1x: CUDA out of memory" in frame
    assert "AMOS" not in frame


def test_the_latest_switches_come_first(write_run):
    run = write_run(amos=True)
    every = run.switches()[::-1]
    assert len(every) == switches(run).count > watch.SWITCHES
    assert every[0].iteration == switches(run).last_iteration
    assigned = run["assigned"].tolist()
    position = {int(i): k for k, i in enumerate(run["iteration"])}
    for switch in every:
        assert assigned[position[switch.iteration]][switch.tensor] == switch.to
    iterations = [switch.iteration for switch in every]
    assert iterations == sorted(iterations, reverse=True)
    frame = text(run.path)
    assert frame.count("\n  at ") == watch.SWITCHES
    assert [s.iteration for s in run.switches(3)] == [s.iteration for s in every[2::-1]]


def test_only_failures_and_hostile_names(write_run):
    bad = dict(pairs=5, tensors=1, status=Status.FAILED, reason="\x1b[2J gone")
    rows = [Measurement.blank(iteration=i, **bad) for i in range(2)]
    frame = text(write_run(names=["\x1b[31mred"], rows=rows, model_class="\x1b]0;x\x07").path)
    assert "No measurement has succeeded yet." in frame
    assert "failed 2x" in frame
    assert "\x1b" not in frame
    assert "\x07" not in frame


@pytest.mark.parametrize("terminal", [True, False])
def test_ctrl_c_ends_it_cleanly(tmp_path, terminal):
    path = tmp_path / "run.h5"
    command = [sys.executable, "-m", "lipprof", "watch", str(path), "--every", "0.1"]
    environment = os.environ | {"COLUMNS": "90"} | ({"FORCE_COLOR": "1"} if terminal else {})
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        seen = ""
        deadline = time.monotonic() + 60
        try:
            while "Waiting for" not in seen and time.monotonic() < deadline:
                seen += os.read(process.stdout.fileno(), 4096).decode()
            with RunWriter(path, header(NAMES, NUMEL)) as writer:
                for row in measurements(NAMES, NUMEL, 2):
                    writer.append(row)
                while "iteration 100;" not in seen and time.monotonic() < deadline:
                    seen += os.read(process.stdout.fileno(), 65536).decode(errors="replace")
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=120)
        finally:
            process.kill()  # or leaving the block would wait for it for ever
    assert "iteration 100;" in seen
    assert process.returncode == 0
    assert errors == ""
