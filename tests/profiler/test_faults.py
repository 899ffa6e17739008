"""Whatever fails in a measurement or its file: training and the earlier records stay intact."""

import json
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest
import torch

import lipprof
from lipprof.curvature import HessianOperator
from lipprof.record import RunWriter
from tests.profiler.registry import criterion, mlp

SETTINGS = {
    "every": 2,
    "top": 1,
    "bottom": 1,
    "tol": 1e-2,
    "diagonal_probes": 2,
    "engine": "retained",  # on a busy machine auto may trace, whose products are not the ones below
}
AT, STEPS = 2, 6


class Sabotage:
    """Does something, once, to the run that is at iteration ``AT``."""

    def __init__(self, path):
        self.path, self.profiler = path, None

    @property
    def on(self):
        return self.profiler is not None and self.profiler.iteration == AT

    def raising(self, error, function=lambda *_: None, when=lambda: True):
        waiting = [error]

        def sabotaged(*arguments, **keywords):
            if self.on and waiting and when():
                raise waiting.pop()
            return function(*arguments, **keywords)

        return sabotaged


def train(attach=None, sabotage=None, before=lambda *_: None):
    """The final parameters; a step that is interrupted is not repeated."""
    torch.manual_seed(1)
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    before(model, optimizer)
    prof = attach(model, optimizer) if attach else None
    if sabotage:
        sabotage.profiler = prof
    for iteration in range(STEPS):
        optimizer.zero_grad()
        criterion(model, iteration).backward()
        with suppress(KeyboardInterrupt, ZeroDivisionError):
            optimizer.step()
    if prof:
        prof.close()
    return [p.detach() for p in model.parameters()]


def check(path, iterations, failed=()):
    with lipprof.open_run(path) as run:
        assert run["iteration"].tolist() == iterations
        assert [i for i, s in zip(run["iteration"], run["status"], strict=True) if s == 2] == [
            *failed
        ]
        assert (run["eigenvalue"][run["status"] < 2] != 0).all()
        return run["reason"]


PRODUCTS = {
    "error": RuntimeError("the kernel is\nout of order"),
    "out of memory": torch.OutOfMemoryError("tried to allocate 80 GiB"),
    "memory": MemoryError(),
    "assertion": AssertionError("our own"),
}


@pytest.mark.parametrize("error", PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize("source", ["closure", "replay"])
def test_a_product_fails(source, error, tmp_path, monkeypatch, caplog):
    fault = Sabotage(tmp_path / "run.h5")
    monkeypatch.setattr(HessianOperator, "matvec", fault.raising(error, HessianOperator.matvec))
    loss = {"loss": criterion} if source == "closure" else {}
    found = train(lambda m, o: lipprof.attach(m, o, fault.path, **loss, **SETTINGS), fault)
    assert all(map(torch.equal, found, train()))
    assert type(error).__name__ in check(fault.path, [0, 2, 4], failed=[2])[1]
    assert caplog.text.count("training goes on") == 1


@pytest.mark.parametrize("stage", ["matvec", "gradient"])
def test_a_product_or_gradient_is_nan(stage, tmp_path, monkeypatch, caplog):
    fault = Sabotage(tmp_path / "run.h5")
    original = getattr(HessianOperator, stage)

    def poisoned(*arguments):
        return original(*arguments) * (torch.nan if fault.on else 1)

    monkeypatch.setattr(HessianOperator, stage, poisoned)
    found = train(lambda m, o: lipprof.attach(m, o, fault.path, **SETTINGS), fault)
    assert all(map(torch.equal, found, train()))
    assert "finite" in check(fault.path, [0, 2, 4], failed=[2])[1]
    assert caplog.text.count("training goes on") == 1


@pytest.mark.parametrize("source", ["closure", "replay"])
def test_the_users_code_fails_where_it_is_evaluated_again(source, tmp_path, caplog):
    fault = Sabotage(tmp_path / "run.h5")
    picky = fault.raising(ValueError("not now"), when=lipprof.is_probing)
    loss = {"loss": criterion} if source == "closure" else {}
    found = train(
        lambda m, o: lipprof.attach(m, o, fault.path, **loss, **SETTINGS),
        fault,
        before=lambda m, o: m.register_forward_pre_hook(picky),
    )
    assert all(map(torch.equal, found, train()))
    assert "ValueError: not now" in check(fault.path, [0, 2, 4], failed=[2])[1]
    assert caplog.text.count("training goes on") == 1


def failing_at(step, error):
    """A hook on the optimizer that lets one call of ``step`` fail."""
    calls = []

    def hook(*_):
        calls.append(None)
        if len(calls) == step + 1:
            raise error

    return lambda _, optimizer: optimizer.register_step_pre_hook(hook)


def test_an_interrupt_within_a_measurement(tmp_path, monkeypatch):
    """A loop that catches it goes on; the step that it cut short is missing, as without lipprof."""
    fault = Sabotage(tmp_path / "run.h5")
    product = fault.raising(KeyboardInterrupt(), HessianOperator.matvec)
    monkeypatch.setattr(HessianOperator, "matvec", product)
    found = train(lambda m, o: lipprof.attach(m, o, fault.path, **SETTINGS), fault)
    assert all(map(torch.equal, found, train(before=failing_at(AT, KeyboardInterrupt()))))
    check(fault.path, [0, 2, 4])


def test_a_step_that_raises_after_its_measurement(tmp_path):
    """The measurement stays, and is not made again."""

    def attach(model, optimizer):
        prof = lipprof.attach(model, optimizer, tmp_path / "run.h5", **SETTINGS)
        failing_at(AT, ZeroDivisionError())(model, optimizer)
        return prof

    bare = train(before=failing_at(AT, ZeroDivisionError()))
    assert all(map(torch.equal, train(attach), bare))
    check(tmp_path / "run.h5", [0, 2, 4])


@pytest.mark.parametrize("what", ["file", "folder", "replaced", "read-only"])
def test_the_run_file_is_taken_away(what, tmp_path, caplog):
    path = tmp_path / "folder" / "run.h5"

    def attach(model, optimizer):
        prof = lipprof.attach(model, optimizer, path, **SETTINGS)

        def meddle(*_):
            if prof.iteration != AT:
                return
            if what == "read-only":
                path.chmod(0o444)
                path.parent.chmod(0o555)
            elif what == "folder":
                shutil.rmtree(path.parent)
            else:
                path.unlink()
            if what == "replaced":
                path.write_text("mine")

        optimizer.register_step_post_hook(meddle)
        return prof

    found = train(attach)
    if what == "read-only":
        path.parent.chmod(0o755)
    assert all(map(torch.equal, found, train()))
    told = caplog.text.count("recording stops")
    if what == "read-only":
        check(path, [0, 2, 4])
        assert told == 0
        return
    assert told == 1
    assert "removed or replaced" in caplog.text
    assert path.exists() == (what == "replaced")
    assert what != "replaced" or path.read_text() == "mine"


def test_an_append_fails(tmp_path, monkeypatch, caplog):
    fault = Sabotage(tmp_path / "run.h5")
    error = OSError(28, "No space left on device")
    monkeypatch.setattr(RunWriter, "append", fault.raising(error, RunWriter.append))
    found = train(lambda m, o: lipprof.attach(m, o, fault.path, **SETTINGS), fault)
    assert all(map(torch.equal, found, train()))
    check(fault.path, [0])
    assert caplog.text.count("No space left") == 1


FULL = """
import json, resource, signal, sys, torch, lipprof
from pathlib import Path
from tests.profiler.test_faults import AT, SETTINGS, train
torch.set_num_threads(1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])

def attach(model, optimizer):
    prof = lipprof.attach(model, optimizer, path, **SETTINGS)

    def fill(*_):
        if prof.iteration == AT:
            limit = path.stat().st_size // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    optimizer.register_step_post_hook(fill)
    return prof

print(json.dumps([p.tolist() for p in train(attach)]))
"""


def test_the_disk_is_full(tmp_path):
    """A limit on the size of files, which the kernel enforces."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "run.h5")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [p.tolist() for p in train()]
    assert done.stderr.count("recording stops") == 1
    assert "Traceback" not in done.stderr
    check(tmp_path / "run.h5", [0])
