"""The launcher finds the loop of a program that does not know of lipprof."""

import gc
import os
import warnings

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

import lipprof
from lipprof.profiler.launching.launcher import Launcher
from lipprof.settings import load_settings

SMALL = load_settings(every=2, top=1, bottom=1, tol=0.1, diagonal_probes=2)


@pytest.fixture
def watched(tmp_path):
    """``watched(loop, ...)`` runs a loop under a launcher; gives it, and what it said."""

    def run(loop, settings=SMALL, **choice):
        lines = []
        launcher = Launcher(tmp_path / "run.h5", settings, lines.append, **choice)
        launcher.watch()
        try:
            loop()
        finally:
            launcher.finish()
        return launcher, lines

    before = torch.optim.Optimizer.__init__
    yield run
    assert torch.optim.Optimizer.__init__ is before
    assert "global hooks" not in str(warnings.filters)
    assert not torch.nn.modules.module._has_any_global_hook()
    assert not _global_optimizer_pre_hooks


def train(model, optimizer, steps=5, call=None):
    for _ in range(steps):
        optimizer.zero_grad()
        (call or model)(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()


def simple(**_):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    return [p.detach() for p in model.parameters()], torch.get_rng_state()


def iterations(tmp_path):
    with lipprof.open_run(tmp_path / "run.h5") as run:
        assert run.finished
        assert (run["status"] < 2).all(), run["reason"]
        return run["iteration"].tolist()


def test_the_first_iteration_is_measured_and_nothing_is_changed(watched, tmp_path):
    bare = simple()
    results = []
    launcher, lines = watched(lambda: results.append(simple()))
    torch.testing.assert_close(results[0], bare, rtol=0, atol=0)
    assert iterations(tmp_path) == [0, 2, 4]
    assert launcher.profiler.view.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert lines[0].startswith("profiling Sequential (26 parameters) under SGD into ")
    assert lines[1].startswith("measured by replay, retained products: ")
    assert "lipprof report" in lines[2]


def test_what_is_recorded_is_what_an_attached_line_records(watched, tmp_path):
    watched(simple)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = SMALL.model_dump(exclude_none=True)
    with lipprof.attach(model, optimizer, tmp_path / "line.h5", **settings):
        train(model, optimizer)
    with (
        lipprof.open_run(tmp_path / "run.h5") as found,
        lipprof.open_run(tmp_path / "line.h5") as line,
    ):
        assert (found["eigenvalue"] == line["eigenvalue"]).all()
        assert (found["loss"] == line["loss"]).all()


def test_the_outermost_model_is_taken_whatever_ran_before(watched, tmp_path):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x):
            return self.inner(x)

    def loop():
        nn.Linear(3, 2)(torch.ones(1, 3))  # before there is an optimizer
        model = Outer()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        nn.Linear(3, 2)(torch.ones(1, 3))  # of no optimizer
        with torch.no_grad():
            model.inner(torch.ones(1, 3))  # evaluation
        train(model, optimizer)

    launcher, _ = watched(loop)
    assert type(launcher.profiler.model).__name__ == "Outer"
    assert iterations(tmp_path) == [0, 2, 4]


def gan():
    small, large = nn.Linear(3, 1), nn.Sequential(nn.Linear(3, 3))
    adam = torch.optim.Adam(small.parameters(), lr=0.1)
    sgd = torch.optim.SGD(large.parameters(), lr=0.1)
    for _ in range(5):
        train(small, adam, steps=1)
        train(large, sgd, steps=1)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, ("Sequential", "SGD")),
        ({"optimizer": "Adam"}, ("Linear", "Adam")),
        ({"optimizer": "0"}, ("Linear", "Adam")),
        ({"optimizer": "1", "model": "0"}, ("Sequential", "SGD")),
        ({"model": "Linear"}, ("Linear", "SGD")),  # the inner one
    ],
)
def test_the_largest_of_several_unless_another_is_picked(choice, expected, watched, tmp_path):
    launcher, lines = watched(gan, **choice)
    profiler = launcher.profiler
    assert (type(profiler.model).__name__, type(profiler.optimizer).__name__) == expected
    assert iterations(tmp_path) == [0, 2, 4]
    assert ("2 optimizers" in lines[0]) == ("optimizer" not in choice)


def test_a_model_that_is_never_called_is_found_at_the_first_step(watched, tmp_path):
    def loop():
        model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), call=model.forward)

    gc.collect()
    launcher, lines = watched(loop)
    assert type(launcher.profiler.model) is nn.Sequential
    assert "which is not measured" in lines[0]
    with lipprof.open_run(tmp_path / "run.h5") as run:
        assert run["iteration"].tolist() == [2, 4]
        assert run["status"].tolist() == [2, 0]  # no forward to replay, then the live graph


def test_two_modules_under_one_optimizer(watched, tmp_path):
    def loop():
        encoder, decoder = nn.Linear(3, 3), nn.Linear(3, 2)
        optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
        train(encoder, optimizer, call=lambda x: decoder(encoder(x)))

    launcher, lines = watched(loop)
    assert launcher.profiler.view.n == 12
    assert "It holds 60% of the optimizer's parameters." in lines[0]
    assert iterations(tmp_path) == [0, 2, 4]


def no_step():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 3))
    optimizer.zero_grad()


def without_module():
    weight = torch.zeros(3, 1, requires_grad=True)
    train(None, torch.optim.SGD([weight], lr=0.1), call=lambda x: x @ weight)


@pytest.mark.parametrize(
    ("loop", "choice", "reason"),
    [
        (lambda: None, {}, "made no torch.optim.Optimizer"),
        (without_module, {}, "no nn.Module holds the parameters of the optimizer (SGD)"),
        (simple, {"optimizer": "Adam"}, "no optimizer is 'Adam'; there were"),
        (
            simple,
            {"model": "GPT"},
            "no model is 'GPT'; with its parameters there were Sequential, Linear",
        ),
    ],
)
def test_what_was_not_found_is_one_line(loop, choice, reason, watched, tmp_path):
    launcher, lines = watched(loop, **choice)
    (line,) = lines
    assert line.startswith("nothing was profiled: ")
    assert reason in line
    assert not (tmp_path / "run.h5").exists()


def test_an_optimizer_that_never_steps(watched, tmp_path):
    _, lines = watched(no_step)
    assert lines[0].startswith("profiling")
    assert lines[1].endswith("has no measurement: SGD made 0 steps. See --every, --optimizer.")


def test_too_small_a_model_is_told_and_the_program_goes_on(watched):
    done = []
    _, lines = watched(lambda: done.append(simple()), settings=load_settings(top=20, bottom=20))
    assert done
    (line,) = lines
    assert line.startswith("nothing is profiled: top=20")


def test_an_error_of_the_finder_itself_is_told_and_the_program_goes_on(watched, monkeypatch):
    monkeypatch.setattr("lipprof.profiler.launching.launcher.Profiler", None)
    done = []
    _, lines = watched(lambda: done.append(simple()))
    assert done
    assert lines == ["nothing is profiled: TypeError: 'NoneType' object is not callable"]


def test_other_ranks_do_nothing(watched, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    _, lines = watched(simple)
    assert lines == []


def test_a_process_that_cannot_be_profiled_is_told_once(watched, monkeypatch):
    monkeypatch.setattr("lipprof.profiler.replicas.process_count", lambda: 2)
    monkeypatch.setattr("lipprof.profiler.replicas.process_rank", lambda: 1)
    _, lines = watched(simple)
    (line,) = lines
    assert "rank 1 of 2" in line


@pytest.mark.filterwarnings("error")
def test_a_compiled_model_is_found_without_a_warning(watched):
    def loop():
        model = nn.Sequential(nn.Linear(3, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(torch.compile(model, backend="eager"), optimizer)

    launcher, _ = watched(loop)
    assert type(launcher.profiler.model).__name__ == "OptimizedModule"


def test_a_forked_copy_leaves_the_run_file_alone(watched, tmp_path):
    def loop():
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, steps=1)
        child = os.fork()
        if child == 0:
            train(model, optimizer, steps=4)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        train(model, optimizer, steps=4)

    watched(loop)
    assert iterations(tmp_path) == [0, 2, 4]
