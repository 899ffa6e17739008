"""The loss elsewhere: against a model that really is there, and without a trace."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lipprof.curvature import DisplacedLoss, ParameterView, ProbeLoss, displaced
from lipprof.errors import ShapeError
from tests.curvature.test_guards import assert_same, states
from tests.models import KINDS, problem


def elsewhere(model, displacement):
    moved = copy.deepcopy(model)
    flat = nn.utils.parameters_to_vector(moved.parameters()).detach() + displacement
    nn.utils.vector_to_parameters(flat, moved.parameters())
    return moved


def displaced_loss(model, loss, probe=None):
    return DisplacedLoss(ProbeLoss(model, loss, probe), ParameterView.of(model))


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_loss_of_a_model_that_is_there(kind):
    p = problem(kind, torch.float64)
    p.model.eval()
    along = displaced_loss(p.model, p.loss)
    for scale in (0.0, 1e-3, 1.0):
        displacement = scale * torch.randn(along.view.n, dtype=torch.float64)
        expected = p.loss(elsewhere(p.model, displacement)).item()
        assert along(displacement) == pytest.approx(expected, rel=1e-12)
    assert along.num_evaluations == 3


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_no_trace_and_repeats_exactly(kind):
    p = problem(kind)
    p.loss(p.model).backward()
    along = displaced_loss(p.model, p.loss)
    displacement = torch.randn(along.view.n)
    before = states(p.model)
    first = along(displacement)
    assert_same(before, states(p.model))
    assert along(displacement) == first


def test_microbatches_are_weighted_by_size():
    p = problem("mlp", torch.float64)
    p.model.eval()
    chunks = [(p.inputs[:30], p.targets[:30]), (p.inputs[30:], p.targets[30:])]
    displacement = torch.randn(ParameterView.of(p.model).n, dtype=torch.float64)
    parts = displaced_loss(p.model, p.loss, chunks)(displacement)
    assert parts == pytest.approx(displaced_loss(p.model, p.loss)(displacement), rel=1e-12)


def test_builds_no_graph():
    model, seen = nn.Linear(3, 1), []

    def loss(m):
        value = m(torch.ones(2, 3)).mean()
        seen.append(value.requires_grad)
        return value

    displaced_loss(model, loss)(torch.zeros(4))
    assert seen == [False]


def test_a_loss_that_differentiates_within_itself():
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Dropout(), nn.Linear(4, 1)).double()
    inputs = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)

    def loss(m):
        (slope,) = torch.autograd.grad(m(inputs).sum(), inputs, create_graph=True)
        return slope.square().mean()

    along = displaced_loss(model, loss)
    torch.manual_seed(0)
    assert along(torch.zeros(along.view.n)) == loss(model).item()


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_told(wrong):
    along = displaced_loss(nn.Linear(3, 1), lambda m: m(torch.ones(2, 3)).sum() * 0 + wrong)
    assert along(torch.zeros(4)) == pytest.approx(wrong, nan_ok=True)


def test_parameters_are_put_back_bitwise_whatever_happens():
    model = nn.Sequential(nn.Linear(3, 4).bfloat16(), nn.Linear(4, 1).double())
    before = copy.deepcopy(model.state_dict())
    versions = [p._version for p in model.parameters()]
    view = ParameterView.of(model)

    def interrupted():
        with displaced(view, torch.full((view.n,), 0.1)):
            assert model[0].weight[0, 0] == torch.tensor(0.1, dtype=torch.bfloat16)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p._version for p in model.parameters()] == versions


def test_a_graph_from_before_stays_usable():
    p = problem("mlp")
    p.model.eval()
    loss = p.loss(p.model)
    displaced_loss(p.model, p.loss)(torch.ones(ParameterView.of(p.model).n))
    live = torch.autograd.grad(loss, p.model[0].weight)[0]
    assert torch.equal(live, torch.autograd.grad(p.loss(p.model), p.model[0].weight)[0])


def test_one_autocast_region_does_not_hide_the_displacement():
    model, inputs = nn.Linear(4, 2), torch.randn(8, 4)
    along = displaced_loss(model, lambda m: F.mse_loss(m(inputs).float(), torch.zeros(8, 2)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        here = along(torch.zeros(10))
        there = along(torch.ones(10))
    assert abs(there - here) > 0.1


def test_rounding_is_that_of_the_coarsest_parameters():
    model = nn.Sequential(nn.Linear(3, 4).bfloat16(), nn.Linear(4, 1).double())
    assert displaced_loss(model, lambda m: m).view.rounding == torch.finfo(torch.bfloat16).eps


def test_a_displacement_of_another_length_is_refused():
    with pytest.raises(ShapeError, match="n=4"):
        displaced(ParameterView.of(nn.Linear(3, 1)), torch.zeros(5)).__enter__()
