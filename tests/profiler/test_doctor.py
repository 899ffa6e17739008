"""The doctor finds what is broken, and only that."""

import importlib.util

import pytest
import torch
from typer.testing import CliRunner

from lipprof.cli.app import app
from lipprof.profiler.doctor import machine as doctor
from lipprof.profiler.doctor.machine import State, diagnose
from lipprof.record import RunWriter


def states(folder):
    return {check.name: check for check in diagnose(folder)}


def test_a_machine_that_passes_the_tests_is_well(tmp_path):
    before = torch.get_rng_state()
    found = states(tmp_path)
    assert not [check for check in found.values() if check.state is State.FAILED]
    assert torch.__version__ in found["versions"].text
    assert {"eigenvalues on cpu", "attention on cpu", "LSTM on cpu", "run file"} <= found.keys()
    assert torch.equal(torch.get_rng_state(), before)
    assert list(tmp_path.iterdir()) == []


def test_what_fails_is_told_and_is_the_exit_code(tmp_path, monkeypatch):
    def full(self, measurement):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunWriter, "append", full)
    monkeypatch.setattr(doctor, "_LAYERS", {})
    result = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("failed")]
    assert "run file: OSError" in line
    assert "No space left" in line


def test_wrong_eigenvalues_are_noticed(monkeypatch):
    original = doctor.spectrum

    def wrong(*arguments, engine="auto", **keywords):
        pairs = original(*arguments, engine=engine, **keywords)
        if engine != "differences":
            pairs.values.mul_(1.5)
        return pairs

    monkeypatch.setattr(doctor, "spectrum", wrong)
    with pytest.raises(ArithmeticError, match="off by"):
        doctor._closed_form("cpu")
    with pytest.raises(ArithmeticError, match="differentiating twice"):
        doctor._second_derivative(doctor._attention, "cpu")


def test_network_file_systems_and_missing_extras_get_advice(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_file_system_of", lambda folder: "nfs4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (check,) = doctor._file_system(tmp_path)
    assert check.state is State.NOTE
    assert "swmr=False" in check.text
    assert "pip install lipprof[xarray]" in doctor._extras()
