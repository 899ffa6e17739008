"""Every command through typer's runner: the happy path, and one line for every user error."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from lipprof.cli.app import app
from lipprof.record import Measurement, RunWriter, Status, open_run
from lipprof.settings import load_settings
from lipprof.version import __version__
from tests.headers import run_header

NAMES, NUMEL = ("encoder.weight", "decoder.weight"), (300, 100)


def rows(count=4, **fields):
    """The decoder's L stays above 3λ²/γ = 3, the encoder's below."""
    for i in range(count):
        yield Measurement.blank(
            pairs=2,
            tensors=2,
            iteration=10 * i,
            **dict(
                eigenvalue=np.array([2.0, -1.0]),
                **dict.fromkeys(
                    ["tensor_lipschitz", "tensor_lipschitz_upper"],
                    np.full(2, np.nan) if i == 0 else np.array([0.5, 40.0]),
                ),
                **dict.fromkeys(
                    ["tensor_threshold", "tensor_threshold_low", "tensor_threshold_high"],
                    np.full(2, 3.0),
                ),
                tensor_curvature=np.ones(2),
                tensor_slope=np.ones(2),
                recommendation=np.array([0, 0] if i == 0 else [2, 1], np.int8),
            )
            | fields,
        )


def write(path: Path, measurements=None) -> Path:
    header = run_header(
        tensor_names=NAMES,
        tensor_numel=NUMEL,
        top=1,
        bottom=1,
        model_class="Autoencoder",
        probe="64 images",
    )
    with RunWriter(path, header) as writer:
        for measurement in rows() if measurements is None else measurements:
            writer.append(measurement)
    return path


@pytest.fixture
def run(tmp_path):
    return write(tmp_path / "run.h5")


def invoke(*arguments, exit_code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "100"})
    assert result.exit_code == exit_code, result.output
    return result


def error_of(*arguments):
    result = invoke(*arguments, exit_code=2)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_report_says_the_answer_first(run):
    output = invoke("report", run).stdout
    assert output.startswith("Use a first-order optimizer for 25 % of the parameters (1 of 2")


def test_report_of_an_earlier_iteration(run):
    output = invoke("report", run, "--iteration", 10).stdout
    assert "this report: 10" in output


def test_report_as_json_is_json_and_nothing_else(run):
    report = json.loads(invoke("report", run, "--json").stdout)
    assert report["recommendation"]["first_order_share"] == 0.25
    assert report["series"]["loss"] == [None] * 4


def test_report_as_page_says_where(run, tmp_path):
    page = tmp_path / "page.html"
    assert invoke("report", run, "--html", page).stdout == f"Wrote {page}\n"
    assert "Use a first-order optimizer for 25 %" in page.read_text("utf-8")


def test_page_and_json_together_keep_stdout_json(run, tmp_path):
    page = tmp_path / "page.html"
    json.loads(invoke("report", run, "--html", page, "--json").stdout)
    assert page.exists()


def test_watch_prints_one_frame(run, tmp_path):
    frame = invoke("watch", run, "--once").stdout
    assert "finished" in frame.splitlines()[0]
    assert "first-order: 1 tensor, 25 %" in frame
    missing = invoke("watch", tmp_path / "no.h5", "--once").stdout
    assert "there is no such file yet" in " ".join(missing.split())


def test_export_says_what_it_wrote(run, tmp_path):
    output = invoke("export", run, "--to", "csv", "--out", tmp_path / "tables").stdout
    names = ("measurement.csv", "pair.csv", "tensor.csv")
    assert output.splitlines() == [f"Wrote {tmp_path / 'tables' / name}" for name in names]
    assert "Unknown format 'xlsx'" in error_of("export", run, "--to", "xlsx")
    assert "There is no run file" in error_of("export", tmp_path / "no.h5", "--to", "csv")


def test_compare_in_the_terminal_and_as_a_page(run, tmp_path):
    other = write(tmp_path / "other.h5", rows(3))
    output = invoke("compare", run, other).stdout
    assert output.startswith("Compared at iteration 20, the last that all have reached.")
    page = tmp_path / "both.html"
    assert invoke("compare", tmp_path, "--html", page).stdout == f"Wrote {page}\n"
    assert "Compared at iteration 20" in page.read_text("utf-8")
    assert "expected iteration, time, loss" in error_of("compare", run, other, "--by", "epoch")
    assert "There is no run file" in error_of("compare", tmp_path / "no.h5")


def test_recommend_agrees_with_the_recorded_rule(run):
    assert "The same as the run recorded." in invoke("recommend", run).stdout


def test_recommend_another_rule_says_what_changes(run):
    options = ("--rule", "threshold", "--threshold", "0.1")
    output = invoke("recommend", run, *options).stdout
    assert "100 % of the parameters to the first-order side" in output
    assert "encoder.weight: second-order -> first-order" in output
    answer = json.loads(invoke("recommend", run, *options, "--json").stdout)
    assert answer["rule"] == "threshold(limit=0.1)"
    assert answer["differences"] == [
        {"name": "encoder.weight", "numel": 300, "recorded": "second-order",
         "recomputed": "first-order"}
    ]  # fmt: skip


def test_recommend_takes_rules_with_their_options(run):
    options = ("--rule", "quantile(share=1, side=low)", "--json")
    answer = json.loads(invoke("recommend", run, *options).stdout)
    assert answer["rule"] == "quantile(share=1, side='low')"
    assert {tensor["choice"] for tensor in answer["tensors"]} == {"first-order"}
    assert {tensor["threshold"] for tensor in answer["tensors"]} == {None}
    assert "No answers" not in invoke("recommend", run, "--rule", "random").stdout
    waiting = invoke("recommend", run, "--warmup", "1000").stdout
    assert "warm-up until iteration 1000" in " ".join(waiting.split())


def test_profiles_list_and_show():
    listed = invoke("profiles", "list").stdout
    assert "paper-amos" in listed
    assert "Alg. 2 with the constants of App. K" in listed
    shown = invoke("profiles", "show", "quick").stdout
    assert shown == load_settings("quick").to_toml()
    assert "alpha = 0.9" in shown, "defaults are filled in"


def test_repair_keeps_every_measurement_of_a_killed_run(tmp_path):
    path = tmp_path / "run.h5"
    writer = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_commands import RunWriter, rows, write
        def forever():
            yield from rows()
            print("written", flush=True)
            time.sleep(60)
        write(Path({str(path)!r}), forever())
    """)
    with subprocess.Popen([sys.executable, "-c", writer], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"written\n"
        os.kill(process.pid, signal.SIGKILL)
    assert "not finished" in invoke("report", path).stdout
    with pytest.raises(OSError, match="already open for write"):
        h5py.File(path)
    assert invoke("repair", path).stdout == f"{path}: 4 measurements kept\n"
    with h5py.File(path) as file:
        assert file["n_valid"][()] == 4


def test_version_and_help():
    assert invoke("--version").stdout == f"lipprof {__version__}\n"
    for command in (
        "report",
        "watch",
        "recommend",
        "repair",
        ("profiles", "list"),
        ("profiles", "show"),
    ):
        words = (command,) if isinstance(command, str) else command
        assert f"lipprof {' '.join(words)}" in invoke(*words, "--help").stdout.split("Examples")[1]


def test_help_loads_nothing_heavy():
    code = "import sys, lipprof.cli.app; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"torch", "h5py", "plotly", "numpy"} & set(loaded.stdout.split())


def test_python_m_lipprof_is_the_command(run):
    command = [sys.executable, "-m", "lipprof", "report", str(run), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["run"]["model_class"] == "Autoencoder"


def test_a_terminal_without_unicode_gets_a_report(run):
    command = [sys.executable, "-m", "lipprof", "report", str(run)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert result.stdout.startswith(b"Use a first-order optimizer for 25 %")


@pytest.mark.parametrize("command", ["report", "recommend", "repair"])
def test_what_is_no_run_file_is_one_line(command, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not HDF5")
    other = tmp_path / "other.h5"
    h5py.File(other, "w").close()
    assert "There is no" in error_of(command, tmp_path / "missing.h5")
    assert "is a folder" in error_of(command, tmp_path)
    assert "is not an HDF5 file" in error_of(command, text)
    assert "not a run" in error_of(command, other)


@pytest.mark.parametrize("command", ["report", "recommend"])
def test_a_newer_schema_asks_for_an_upgrade(command, run):
    with h5py.File(run, "r+") as file:
        file.attrs["schema_version"] = 99
    assert "pip install --upgrade lipprof" in error_of(command, run)


@pytest.mark.parametrize("command", ["report", "recommend"])
def test_a_run_without_a_usable_measurement_is_one_line(command, tmp_path):
    empty = write(tmp_path / "empty.h5", [])
    assert "has no measurement yet" in error_of(command, empty)
    failed = rows(status=Status.FAILED, reason="out of\x1b[31m memory")
    line = error_of(command, write(tmp_path / "failed.h5", failed))
    assert "All 4 measurements" in line
    assert "\x1b" not in line


def test_wrong_arguments_are_one_line(run, tmp_path):
    assert "no measurement at iteration 7" in error_of("report", run, "--iteration", 7)
    page = tmp_path / "no" / "page.html"
    assert f"Cannot write {page}" in error_of("report", run, "--html", page)
    assert "Cannot write" in error_of("report", run, "--html", tmp_path)
    assert "Unknown rule 'vibes'" in error_of("recommend", run, "--rule", "vibes")
    assert "threshold > 0" in error_of("recommend", run, "--threshold", "-1")
    assert "expected share in [0, 1]" in error_of("recommend", run, "--rule", "random(share=3)")
    assert "which fits none of" in error_of("recommend", run, "--rule", "static(first=nothing)")
    assert "There is no profile 'nope'" in error_of("profiles", "show", "nope")


def test_a_bug_keeps_its_traceback(run, monkeypatch):
    monkeypatch.setattr("lipprof.report.derived.select", lambda *_: 1 / 0)
    result = CliRunner().invoke(app, ["report", str(run)])
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_run_is_reported_while_it_is_written(tmp_path):
    def watched():
        for row in rows():
            yield row
            if row.iteration == 20:
                assert "0 to 20" in invoke("report", tmp_path / "live.h5").stdout

    write(tmp_path / "live.h5", watched())
    with open_run(tmp_path / "live.h5") as run:
        assert len(run) == 4
