"""The doctor's look at a training program and at a checkpoint."""

import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from lipprof.cli.app import app
from lipprof.curvature import (
    AllocationCounter,
    Derivative,
    HessianOperator,
    ParameterView,
    check_layers,
    gradient_graph,
    recorded_calls,
    twice_differentiable,
)
from lipprof.profiler.doctor.examination import Examined, Examiner, _round_up
from lipprof.settings import load_settings
from tests.models import Attention
from tests.profiler.registry import LOOPS, Fused, mlp


@pytest.fixture
def examined():
    def run(loop):
        lines, findings = [], []
        examiner = Examiner(load_settings(), findings.append, lines.append)
        examiner.watch()
        with suppress(Examined):
            loop()
        examiner.finish()
        return examiner.profiler, {check.name: check for check in findings}, lines

    before = torch.optim.Optimizer.__init__
    yield run
    assert torch.optim.Optimizer.__init__ is before
    assert not torch.nn.modules.module._has_any_global_hook()


def trained(kind, steps=20):
    done = []

    def loop():
        made = LOOPS[kind]()
        for iteration in range(steps):
            made.step(iteration)
            done.append(made.model)

    return loop, done


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("plain", "replay, retained"),
        ("lbfgs", "replay, retained"),
        ("grad scaler", "replay, retained"),
        ("gradient penalty", "live, retained"),
        ("once differentiable", "replay, differences"),
        ("gradients by torch.func", "gradient norms and distances alone"),
    ],
)
def test_the_source_that_would_serve_is_found_in_a_few_steps(kind, source, examined):
    loop, done = trained(kind)
    examination, found, lines = examined(loop)
    assert found["source"].text.startswith(source)
    assert lines == []
    assert len(done) < 8
    assert ("cost" in found) == ("," in source)
    if "cost" in found:
        assert examination.build_s > 0
        assert examination.matvec_s > 0
        assert examination.step_s > 0
        assert "suggestion" in found


def test_the_steps_that_were_taken_are_those_of_the_program(examined):
    loop, done = trained("accumulation")
    examined(loop)
    torch.manual_seed(0)
    bare = LOOPS["accumulation"]()
    for iteration in range(len(done) + 1):
        bare.step(iteration)
    assert all(map(torch.equal, done[-1].parameters(), bare.model.parameters()))


def test_the_memory_is_that_of_the_same_products_counted_directly(examined):
    loop, _ = trained("plain")
    examination, _, _ = examined(loop)
    fresh = LOOPS["plain"]()
    view = ParameterView.of(fresh.model)
    with twice_differentiable(fresh.model), AllocationCounter() as counter:
        operator = HessianOperator(view, [gradient_graph(fresh.loss(fresh.model, 0), view)])
        operator.matvec(operator.gradient())
    assert examination.product_bytes == pytest.approx(counter.peak, rel=0.5)


def test_nothing_to_examine_is_one_line(examined):
    examination, found, lines = examined(lambda: None)
    assert examination is None
    assert found == {}
    (line,) = lines
    assert line.startswith("nothing was examined: the program made no torch.optim.Optimizer")


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend, self.relu, self.widen = Attention(), nn.ReLU(), nn.Linear(11, 24)
        self.once = Fused()

    def forward(self, tokens):
        return self.once(self.widen(self.relu(self.attend(tokens))).mean(1))


class _Detaching(torch.autograd.Function):
    """A backward that forgets how it depends on its input."""

    @staticmethod
    def forward(ctx, x):
        ctx.y = x.tanh()
        return ctx.y.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - ctx.y.detach() ** 2)


def test_an_error_of_the_finder_itself_is_told_of_an_examination(examined, monkeypatch):
    monkeypatch.setattr("lipprof.profiler.doctor.examination.Examination", None)
    loop, done = trained("plain", steps=2)
    _, _, lines = examined(loop)
    assert len(done) == 2
    assert lines == ["nothing is examined: TypeError: 'NoneType' object is not callable"]


def test_layers_are_judged_alone():
    model = Mixed()
    tokens = torch.randint(0, 11, (4, 5))
    with recorded_calls(model) as calls:
        model(tokens)
    found = {check.kind: check for check in check_layers(model, calls)}
    assert found["Linear"].well
    assert found["LayerNorm"].well
    assert found["ReLU"].second is Derivative.RIGHT
    assert found["Attention"].second is Derivative.REPLACED
    assert found["Attention"].third is Derivative.RIGHT
    assert "scaled_dot_product" in found["Attention"].reason
    assert found["Fused"].second is Derivative.MISSING
    assert "once_differentiable" in found["Fused"].reason


def test_a_wrong_backward_is_found():
    model = nn.Sequential(Fused(_Detaching.apply), nn.Tanh())
    with recorded_calls(model) as calls:
        model(torch.randn(4, 24))
    found = {check.kind: check for check in check_layers(model, calls)}
    assert found["Tanh"].well
    assert found["Fused"].second is Derivative.WRONG
    assert "differ by" in found["Fused"].reason


PROGRAM = """
import sys, torch
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=float(sys.argv[1]))
try:
    for i in range(10_000):
        model(torch.ones(5, 3)).square().mean().backward()
        optimizer.step()
except Exception:
    print("swallowed")
finally:
    print("cleaned up", i < 10)
"""


def test_a_program_is_ended_cleanly(tmp_path):
    (tmp_path / "train.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "lipprof", "doctor", "--", "train.py", "0.1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, *lines = done.stdout.splitlines()
    assert first == "cleaned up True"
    assert lines[0].startswith("ok      model: Sequential, 26 parameters in 4 tensors, float32")
    assert any(line.startswith("ok      suggestion: lipprof attach --every ") for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def checkpoint(path, *options):
    result = CliRunner().invoke(app, ["doctor", "--checkpoint", str(path), *options])
    return result.exit_code, result.output


def test_a_state_dict_is_sized_up(tmp_path):
    model = mlp()
    torch.save({"model": model.state_dict(), "iteration": 3}, tmp_path / "c.pt")
    code, output = checkpoint(tmp_path / "c.pt", "--set", "basis_size=9")
    assert code == 0
    n = sum(p.numel() for p in model.parameters())
    assert f"at most {n} parameters in 4 tensors (float32)" in output
    assert "9 Lanczos vectors" in output
    with torch.no_grad():
        model[1].bias[0] = torch.nan
    torch.save(model.state_dict(), tmp_path / "c.pt")
    code, output = checkpoint(tmp_path / "c.pt")
    assert code == 1
    assert "failed  values: NaN or infinity in 1.bias" in output


class Evil:
    def __reduce__(self):
        return print, ("run from a pickle",)


def test_a_checkpoint_runs_no_code(tmp_path):
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "text.pt").write_text("hello")
    torch.save([1, 2], tmp_path / "empty.pt")
    for name, reason in {
        "evil.pt": "runs no code from files",
        "text.pt": "cannot be read",
        "empty.pt": "has no state dict",
        "none.pt": "There is no file",
    }.items():
        code, output = checkpoint(tmp_path / name)
        assert code == 2
        assert reason in output
        assert "run from a pickle" not in output
        assert len(output.splitlines()) == 1


def test_steps_are_rounded_up_to_1_2_5():
    assert [_round_up(x) for x in (0.2, 1, 1.5, 3, 7, 99, 101, 501)] == [
        1, 1, 2, 5, 10, 100, 200, 1000,
    ]  # fmt: skip
