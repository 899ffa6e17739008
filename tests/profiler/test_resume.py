"""A run that is stopped and resumed measures and advises as the run that was never stopped."""

import subprocess
import sys
from functools import partial
from itertools import cycle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lipprof
from lipprof.errors import ConfigError
from lipprof.optim import AMOS, ELMO, Sophia
from lipprof.profiler.budget import Budget
from lipprof.record.schema import VARIABLES
from lipprof.settings import Settings
from tests.models import problem

STEPS = 8
SMALL = {"every": 2, "top": 2, "bottom": 1, "tol": 0.01, "diagonal_probes": 4, "engine": "retained"}
CLOCK = {"time", "seconds"}

sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
adamw = partial(torch.optim.AdamW, lr=0.01)


def plain(model):
    return sgd(model.parameters())


def amos(model):
    return AMOS(
        model.named_parameters(),
        first=sgd,
        second=partial(Sophia, lr=0.01),
        rule="quantile(share=0.5)",
    )


def elmo(model):
    return ELMO(model.named_parameters(), sgd)


class Square(torch.autograd.Function):
    """Has no second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


def penalised(p, model, batch):
    """A term that does not come from the model's forward: the step cannot be replayed."""
    return p.loss(model, batch) + 0.1 * sum(x.square().sum() for x in model.parameters())


def once_differentiable(p, model, batch):
    inputs, targets = batch
    return F.cross_entropy(Square.apply(model(inputs)), targets)


def only_hooks(p, model, batch):
    """Neither a replay nor a second derivative."""
    return penalised(p, model, batch) + Square.apply(next(model.parameters())).sum()


RUNS = {
    "drift": {},
    "mean": {"aggregate": "mean", "rule": "quantile(share=0.5)", "units": "module"},
    "max": {"aggregate": "max", "denoise": False, "rule": "threshold", "threshold": 0.1},
    "exact": {"lipschitz": "exact"},
    "live": {"step": penalised},
    "differences": {"step": once_differentiable},
    "hooks": {"step": only_hooks},
    "batchnorm": {"kind": "batchnorm"},
    "closure": {"probe": True, "lipschitz": "all", "superiority": True, "noise": True},
    "eigenarc": {"probe": True, "lipschitz": "eigenarc"},
    "closure differences": {"probe": True, "engine": "differences", "tol": 0.1, "bottom": 0},
    "traced": {"probe": True, "engine": "traced"},
    "calibrated": {"probe": True, "calibrate": True},
    "calibrated AMOS": {"probe": True, "calibrate": True, "optimizer": amos},
    "AMOS": {"optimizer": amos, "rule": "quantile(share=0.5)"},
    "AMOS exact": {"optimizer": amos, "lipschitz": "exact", "warmup": 3, "hysteresis": 1.1},
    "ELMO": {"optimizer": elmo},
}


class Run:
    """One training under the profiler, with all of its state in a checkpoint."""

    def __init__(self, path, options, resume=False):
        options = dict(options)
        torch.manual_seed(1)
        self.problem = problem(options.pop("kind", "mlp"))
        self.model = self.problem.model.train()
        self.optimizer = options.pop("optimizer", plain)(self.model)
        self.loss = options.pop("step", lambda p, model, batch: p.loss(model, batch))
        if options.pop("probe", False):
            options |= {"loss": self.problem.loss, "probe": [self.problem.batch(1, 20)]}
        if options.pop("noise", False):
            options["noise"] = [self.problem.batch(i, 8) for i in range(2)]
        self.profiler = lipprof.attach(
            self.model, self.optimizer, path, resume=resume, **(SMALL | options)
        )

    def train(self, iterations):
        for iteration in iterations:
            self.optimizer.zero_grad()
            self.loss(self.problem, self.model, self.problem.batch(iteration)).backward()
            self.optimizer.step()

    def save(self, path):
        parts = {"model": self.model, "optimizer": self.optimizer, "profiler": self.profiler}
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"random": torch.get_rng_state()}, path)

    def load(self, path):
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.profiler.load_state_dict(state["profiler"])
        torch.set_rng_state(state["random"])


def resumed(folder, options, stop):
    """The second half of a run, in whatever process this is called."""
    rest = Run(folder / "parts.h5", options, resume=True)
    rest.load(folder / "state.pt")
    rest.train(range(stop, STEPS))
    rest.profiler.close()
    return rest


def interrupted(folder, options, stop, *, lost=0):
    """Trains to ``stop`` and ``lost`` steps on, then goes on from the checkpoint at ``stop``."""
    first = Run(folder / "parts.h5", options)
    first.train(range(stop))
    first.save(folder / "state.pt")
    first.train(range(stop, stop + lost))
    first.profiler.close()
    return resumed(folder, options, stop)


def whole(folder, options):
    run = Run(folder / "whole.h5", options)
    run.train(range(STEPS))
    run.profiler.close()
    return run


def require_same_file(folder):
    found = require_same_rows(folder / "whole.h5", folder / "parts.h5")
    assert found == list(range(0, STEPS, 2))


def require_same_rows(whole, parts):
    """The iterations of two run files that differ in nothing but clocks."""
    with lipprof.open_run(whole) as one, lipprof.open_run(parts) as two:
        for name in {variable.name for variable in VARIABLES} - CLOCK:
            np.testing.assert_array_equal(two[name], one[name], err_msg=name)
        assert [(r.iteration, r.side, r.num_gradients) for r in two.calibration] == [
            (r.iteration, r.side, r.num_gradients) for r in one.calibration
        ]
        return one["iteration"].tolist()


def require_same_training(one, two):
    assert all(map(torch.equal, one.model.parameters(), two.model.parameters()))
    if isinstance(one.optimizer, AMOS):
        assert one.optimizer.switches == two.optimizer.switches
    if one.profiler.recommendation is not None:
        np.testing.assert_array_equal(
            one.profiler.recommendation.stable_for, two.profiler.recommendation.stable_for
        )


FAST = "AMOS", "closure", "calibrated AMOS", "differences", "hooks"


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        pytest.param(name, stop, marks=[] if name in FAST else pytest.mark.slow, id=name)
        for name, stop in zip(RUNS, cycle([3, 4]), strict=False)
    ],
)
def test_everything_measured_is_the_same(name, stop, tmp_path):
    one, two = whole(tmp_path, RUNS[name]), interrupted(tmp_path, RUNS[name], stop)
    require_same_file(tmp_path)
    require_same_training(one, two)


def test_what_was_measured_after_the_checkpoint_is_followed_again(tmp_path):
    """A killed run has rows that its checkpoint does not know of."""
    one = whole(tmp_path, RUNS["AMOS"])
    two = interrupted(tmp_path, RUNS["AMOS"], 3, lost=4)
    require_same_file(tmp_path)
    require_same_training(one, two)


def test_in_a_new_process(tmp_path):
    one = whole(tmp_path, RUNS["AMOS"])
    first = Run(tmp_path / "parts.h5", RUNS["AMOS"])
    first.train(range(5))
    first.save(tmp_path / "state.pt")
    first.profiler.close()
    code = f"""
import torch
from pathlib import Path
from tests.profiler.test_resume import RUNS, resumed
rest = resumed(Path({str(tmp_path)!r}), RUNS["AMOS"], 5)
torch.save(rest.model.state_dict(), {str(tmp_path / "end.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    require_same_file(tmp_path)
    end = torch.load(tmp_path / "end.pt", weights_only=True)
    torch.testing.assert_close(end, one.model.state_dict(), rtol=0, atol=0)


def test_the_size_of_the_state(tmp_path):
    run = Run(tmp_path / "run.h5", {"top": 3, "bottom": 2})
    run.train(range(3))
    n = run.profiler.view.n
    torch.save(run.profiler.state_dict(), tmp_path / "state.pt")
    storages, tensors = set(), [run.profiler.state_dict()]
    size = 0
    while tensors:
        x = tensors.pop()
        if isinstance(x, torch.Tensor):
            storage = x.untyped_storage()
            if storage.data_ptr() not in storages:
                size += storage.nbytes()
            storages.add(storage.data_ptr())
        elif isinstance(x, dict):
            tensors += x.values()
        elif isinstance(x, (list, tuple)):
            tensors += x
    few = 8 * 20 * (len(run.profiler.view.names) + 5)
    assert 4 * n * 6 <= size <= 4 * n * 6 + few
    run.profiler.close()


def test_the_iteration_alone_starts_the_averages_anew(tmp_path):
    first = Run(tmp_path / "run.h5", {})
    first.train(range(4))
    first.profiler.close()
    rest = Run(tmp_path / "run.h5", {}, resume=True)
    rest.profiler.load_state_dict({"iteration": 4})
    rest.train(range(4, 8))
    rest.profiler.close()
    with lipprof.open_run(tmp_path / "run.h5") as run:
        assert run["iteration"].tolist() == [0, 2, 4, 6]
        assert np.isnan(run["lipschitz_drift"][[0, 2]]).all()
        assert np.isfinite(run["lipschitz_drift"][[1, 3]]).any(1).all()


@pytest.mark.parametrize(
    ("changed", "named"), [({"top": 1}, "top"), ({"aggregate": "max"}, "aggregate"),
                           ({"units": "module"}, "units")],
)  # fmt: skip
def test_a_state_of_another_run_is_refused_whole(changed, named, tmp_path):
    first = Run(tmp_path / "one.h5", {})
    first.train(range(3))
    state = first.profiler.state_dict()
    other = Run(tmp_path / "two.h5", changed)
    before = other.profiler.state_dict()["observer"]
    with pytest.raises(ConfigError, match=named):
        other.profiler.load_state_dict(state)
    assert str(other.profiler.state_dict()["observer"]) == str(before)
    first.profiler.close()
    other.profiler.close()


def test_estimators_that_come_in_start_anew(tmp_path):
    """And those that are gone are not missed."""
    both = {"probe": True, "lipschitz": "all", "noise": True}
    few = {"probe": True}
    for path, (before, after) in {"a.h5": (few, both), "b.h5": (both, few)}.items():
        first = Run(tmp_path / path, before)
        first.train(range(3))
        first.save(tmp_path / "state.pt")
        first.profiler.close()
        rest = Run(tmp_path / path, after, resume=True)
        rest.load(tmp_path / "state.pt")
        rest.train(range(3, 6))
        rest.profiler.close()
        with lipprof.open_run(tmp_path / path) as run:
            assert (run["status"] < 2).all()
            assert np.isfinite(run["lipschitz_drift"][-1]).any()


def test_a_budget_goes_on_as_if_no_time_had_passed():
    def budget():
        now = [float(torch.rand(()) * 100)]  # every process has its own origin of time
        return now, Budget(Settings(max_overhead=0.1), clock=lambda: now[0])

    plans = []
    for stops in (False, True):
        now, own = budget()
        own.price(build=0.1, matvec=0.01)
        taken = []
        for iteration in range(60):
            if stops and iteration == 25:
                state = own.state_dict()
                now, own = budget()
                own.load_state_dict(state)
                assert own.priced
            now[0] += 1.0
            taken.append(own.plan())
            if taken[-1] is not None:
                own.pay(taken[-1], 0.8)
        plans.append(taken)
    assert plans[0] == plans[1]
    assert None in plans[0][25:]
    assert own.full in plans[0][25:]
