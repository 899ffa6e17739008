"""AMOS in the loops that people write: it follows, and a resumed run goes on bit by bit."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import lipprof
from lipprof.advice import Choice
from lipprof.optim import AMOS, Sophia
from tests.optim.problems import recommend
from tests.profiler.registry import criterion, mlp

SETTINGS = {"every": 2, "top": 1, "bottom": 1, "tol": 0.1, "diagonal_probes": 4, "dwell": 1}
STEPS, RESUMED_AT = 8, 5
SWITCHES = {  # before these iterations
    1: {"1.weight": 2, "1.bias": 1, "3.weight": 2, "3.bias": 2},
    4: {"1.weight": 1, "1.bias": 2, "3.weight": 2, "3.bias": 1},
    6: {"1.weight": 2, "1.bias": 2, "3.weight": 1, "3.bias": 2},
}


def amos(model):
    return AMOS(
        model.named_parameters(),
        first=partial(torch.optim.AdamW, lr=0.02),
        second=partial(Sophia, lr=0.01),
    )


class Plain:
    """Zero, backward, step; the others are variations."""

    def __init__(self):
        torch.manual_seed(1)
        self.model = mlp()
        self.called = self.model
        self.optimizer = amos(self.model)
        self.rest = {}  # further things with a state

    def step(self, iteration):
        self.optimizer.zero_grad()
        self.backward(iteration)
        self.update()

    def backward(self, iteration):
        criterion(self.called, iteration).backward()

    def update(self):
        self.optimizer.step()


class Scaled(Plain):
    def __init__(self):
        super().__init__()
        self.rest["scaler"] = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)

    def backward(self, iteration):
        self.rest["scaler"].scale(criterion(self.model, iteration)).backward()

    def update(self):
        self.rest["scaler"].unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.3)
        self.rest["scaler"].step(self.optimizer)
        self.rest["scaler"].update()


class Accumulated(Plain):
    def backward(self, iteration):
        for micro in range(2):
            (criterion(self.model, 2 * iteration + micro) / 2).backward()


class Compiled(Plain):
    def __init__(self):
        super().__init__()
        self.called = torch.compile(self.model, backend="eager")


class Closure(Plain):
    """With a scheduler, as Lightning's automatic optimization has it."""

    def __init__(self):
        super().__init__()
        self.rest["scheduler"] = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 20)

    def step(self, iteration):
        def evaluate():
            self.optimizer.zero_grad()
            loss = criterion(self.model, iteration)
            loss.backward()
            return loss

        self.optimizer.step(evaluate)
        self.rest["scheduler"].step()


class HalfPrecision(Plain):
    def backward(self, iteration):
        with torch.autocast("cpu", torch.bfloat16):
            loss = criterion(self.model, iteration)
        loss.backward()


KINDS = [Plain, Scaled, Accumulated, Compiled, Closure, HalfPrecision]


def train(loop, iterations):
    for iteration in iterations:
        if iteration in SWITCHES:
            choices = {name: Choice(code) for name, code in SWITCHES[iteration].items()}
            loop.optimizer.follow(recommend(choices, iteration))
        loop.step(iteration)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_same(kind, tmp_path):
    whole = kind()
    train(whole, range(STEPS))
    assert len(whole.optimizer.switches) == 9
    before = kind()
    train(before, range(RESUMED_AT))
    parts = {"model": before.model, "optimizer": before.optimizer} | before.rest
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "c.pt")
    after = kind()
    parts = {"model": after.model, "optimizer": after.optimizer} | after.rest
    for name, state in torch.load(tmp_path / "c.pt", weights_only=True).items():
        parts[name].load_state_dict(state)
    train(after, range(RESUMED_AT, STEPS))
    assert all(map(torch.equal, after.model.parameters(), whole.model.parameters()))
    assert after.optimizer.assigned == whole.optimizer.assigned
    assert after.optimizer.switches == whole.optimizer.switches


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")  # torch's own, of compilation
def test_the_live_recommendation_is_followed(kind, tmp_path):
    loop = kind()
    with lipprof.attach(loop.called, loop.optimizer, tmp_path / "run.h5", **SETTINGS) as prof:
        for iteration in range(STEPS + 1):
            loop.step(iteration)
        choice, assigned = prof.recommendation.choice, loop.optimizer.assigned
        now = np.array([assigned[name] for name in prof.view.names])
        assert (choice > 0).any()
        np.testing.assert_array_equal(now[choice > 0], choice[choice > 0])
    with lipprof.open_run(tmp_path / "run.h5") as run:
        assert run["iteration"].tolist() == [0, 2, 4, 6, 8]
        assert (run["status"] < 2).all(), run["reason"]
        assert (run["assigned"] > 0).all()
