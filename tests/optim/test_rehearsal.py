"""A rehearsed step is the step that is then taken, and a rehearsal leaves no trace."""

import copy
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn, optim

from lipprof import AMOS, Choice, Sophia
from lipprof.optim.rehearsal import rehearse

from .problems import Problem, everything, recommend

ADAMW = partial(optim.AdamW, lr=1e-2)
SECONDS = {
    "sgd": partial(optim.SGD, lr=0.1, momentum=0.9),
    "sophia": partial(Sophia, lr=1e-3),
    "adam": partial(optim.Adam, lr=3e-2, amsgrad=True),
    "adagrad": partial(optim.Adagrad, lr=1e-2),
}
if hasattr(optim, "Muon"):
    SECONDS["muon"] = partial(optim.Muon, lr=2e-2)


def trained(second, steps=4, first=ADAMW, **options):
    """A model and its AMOS, the gradients of the next step in place."""
    problem = Problem(dtype=torch.float64)
    model = problem.model()
    amos = AMOS(model.named_parameters(), first=first, second=second, **options)
    for iteration in range(steps + 1):
        amos.zero_grad()
        problem.loss(model, iteration).backward()
        if iteration < steps:
            amos.step()
    return model, amos


@pytest.mark.parametrize("second", SECONDS, ids=str)
@pytest.mark.parametrize("idle_state", ["warm", "restart"])
@pytest.mark.parametrize("start", ["first", "second"])
@pytest.mark.parametrize("side", [Choice.FIRST, Choice.SECOND])
def test_the_step_is_the_one_that_is_taken(second, idle_state, start, side):
    model, amos = trained(SECONDS[second], idle_state=idle_state, start=start)
    foreseen = rehearse(amos)[side == Choice.SECOND]
    amos.follow(everything(model, side))
    before = {p: p.detach().clone() for p in model.parameters()}
    amos.step()
    for p in model.parameters():
        assert torch.equal(foreseen[p], p.detach() - before[p])
        assert foreseen[p].any()


@pytest.mark.parametrize("options", [{"units": 7}, {"matrices": True}], ids=str)
def test_slices_and_matrices_are_put_together(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2)).double()
    if "matrices" in options:
        model = model.to(memory_format=torch.channels_last)
    amos = AMOS(model.named_parameters(), ADAMW, SECONDS["sgd"], **options)
    model(torch.randn(5, 2, 4, 4, dtype=torch.float64)).square().mean().backward()
    foreseen = rehearse(amos)[1]
    recommended = recommend({name: Choice.SECOND for name in amos.assigned})
    amos.follow(recommended)
    before = {p: p.detach().clone() for p in model.parameters()}
    amos.step()
    for p in model.parameters():
        assert torch.equal(foreseen[p], p.detach() - before[p])


def test_learning_rates_are_those_of_the_step_to_come():
    _, amos = trained(SECONDS["sgd"])
    full = rehearse(amos)
    amos.param_groups[0]["lr"] /= 2  # as a scheduler would, for both
    halved = rehearse(amos)
    for before, now in zip(full, halved, strict=True):
        for p, update in now.items():
            torch.testing.assert_close(update, before[p] / 2)


def test_a_tensor_without_a_gradient_has_no_update():
    model, amos = trained(SECONDS["sgd"])
    frozen = model[0].bias
    frozen.grad = None
    for step in rehearse(amos):
        assert not step[frozen].any()
        assert step[model[0].weight].any()


class Restless(optim.SGD):
    """Draws random numbers and writes into its gradients."""

    def step(self, closure=None):
        random.random()
        np.random.rand()
        for p in self.param_groups[0]["params"]:
            p.grad.add_(torch.randn_like(p))
        return super().step(closure)


def snapshot(model, amos):
    state = copy.deepcopy([model.state_dict(), amos.state_dict()])
    gradients = [p.grad.clone() for p in model.parameters()]
    draws = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    return state, gradients, draws


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("first", [ADAMW, partial(Restless, lr=0.1)], ids=["adamw", "restless"])
@pytest.mark.parametrize("start", ["first", "second"])
def test_a_rehearsal_leaves_no_trace(first, start):
    model, amos = trained(SECONDS["sophia"], first=first, start=start)
    amos.step()  # whose learning rates are told
    amos.zero_grad()
    Problem(dtype=torch.float64).loss(model, 9).backward()
    before = snapshot(model, amos)
    tensors = {id(p) for p in model.parameters()}
    rehearse(amos)
    assert same(snapshot(model, amos), before)
    assert {id(p) for group in amos.param_groups for p in group["params"]} == tensors
