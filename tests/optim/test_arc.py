"""ARC against Newton's method, known minima and the rule that it shares with EigenARC."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import nn

from lipprof.errors import ConfigError, NonfiniteError, NotDifferentiableError
from lipprof.optim import AMOS, ARC, ArcStatus
from tests.linalg import spectra
from tests.models import problem

from .problems import parameters_equal


def parameter(*numbers, dtype=torch.float64):
    return nn.Parameter(torch.tensor(numbers, dtype=dtype))


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def run(optimizer, closure, steps):
    return [optimizer.step(closure).item() for _ in range(steps)]


@pytest.mark.parametrize("start", [(-1.2, 1.0), (5.0, -5.0), (0.0, 0.0)])
def test_minimises_rosenbrock(start):
    x = parameter(*start)
    losses = run(ARC([x]), lambda: rosenbrock(x), 60)
    assert x.tolist() == pytest.approx([1.0, 1.0], abs=1e-7)
    assert all(after <= before for before, after in zip(losses, losses[1:], strict=False))


def test_leaves_a_saddle_that_newton_would_go_to():
    """f = (x² − 1)²/4 + y²/2: Newton from the middle goes to the saddle at 0."""
    x = parameter(0.1, 2.0)
    run(ARC([x]), lambda: (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2 / 2, 20)
    assert x.tolist() == pytest.approx([1.0, 0.0], abs=1e-8)


def logistic():
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(200, 10, generator=generator, dtype=torch.float64)
    labels = (inputs @ torch.randn(10, generator=generator, dtype=torch.float64) > 0).double()

    def loss(weight):
        penalty = weight.square().sum() / 200
        return F.binary_cross_entropy_with_logits(inputs @ weight, labels) + penalty

    def value_and_slope(weight):
        z = inputs.numpy() @ weight
        p = 1 / (1 + np.exp(-z))
        value = np.mean(np.logaddexp(0, z) - labels.numpy() * z) + weight @ weight / 200
        return value, inputs.numpy().T @ (p - labels.numpy()) / 200 + weight / 100

    return loss, value_and_slope


def test_reaches_the_minimum_of_a_logistic_regression():
    loss, value_and_slope = logistic()
    weight = parameter(*[0.0] * 10)
    run(ARC([weight]), lambda: loss(weight), 25)
    best = minimize(value_and_slope, np.zeros(10), jac=True, tol=1e-12)
    assert loss(weight).item() == pytest.approx(best.fun, rel=1e-9)
    assert weight.tolist() == pytest.approx(best.x.tolist(), abs=1e-5)


def test_trains_a_float32_network_as_far_as_rounding_allows():
    p = problem("mlp")
    p.model.eval()
    optimizer = ARC(p.model.parameters())
    losses = run(optimizer, lambda: p.loss(p.model), 25)
    assert losses[-1] < losses[0] / 3
    grain = 4 * torch.finfo(torch.float32).eps * losses[0]
    assert all(b <= a + grain for a, b in zip(losses, losses[1:], strict=False))


def test_without_regularisation_it_is_newtons_step():
    matrix = spectra.with_spectrum(torch.linspace(0.5, 8, 12, dtype=torch.float64))
    shift = torch.randn(12, dtype=torch.float64)
    x = parameter(*[0.0] * 12)
    ARC([x], sigma=1e-14).step(lambda: x @ matrix @ x / 2 - shift @ x)
    torch.testing.assert_close(x.detach(), torch.linalg.solve(matrix, shift), rtol=1e-6, atol=0)


def test_the_step_solves_the_cubic_model():
    x, third = parameter(2.0), 0.7
    optimizer = ARC([x], sigma=third)
    optimizer.step(lambda: 3 * x.sum() - x.square().sum())  # λ = −2
    s = x.item() - 2.0
    assert (-2 + third * abs(s)) * s == pytest.approx(-(3 - 2 * 2.0))
    assert -2 + third * abs(s) >= 0


@pytest.mark.parametrize(
    ("sigma", "ratio", "trials", "after"),
    [(1.0, 1.5 - 0.5, 1, 0.5), (0.8, 1.5 - 0.625, 1, 0.8), (0.3, 0.667, 2, 0.6)],
)
def test_sigma_follows_the_ratio(sigma, ratio, trials, after):
    """f = −x + |x|³/3 from 0 on: λ = 0, so that ρ = (3 − 1/σ)/2 as in EigenARC, exact at σ = 1."""
    x = parameter(0.0)
    optimizer = ARC([x], sigma=sigma)
    optimizer.step(lambda: -x.sum() + x.abs().sum() ** 3 / 3)
    assert optimizer.last_step.status is ArcStatus.ACCEPTED
    assert optimizer.last_step.ratio == pytest.approx(ratio, rel=1e-3)
    assert optimizer.last_step.trials == trials
    assert optimizer.param_groups[0]["sigma"] == pytest.approx(after)


def test_a_refused_step_costs_a_forward_and_no_product():
    x, calls = parameter(0.0), []

    def closure():
        calls.append(x.item())
        return -x.sum() + x.abs().sum() ** 3 / 3

    optimizer = ARC([x], sigma=1e-3)
    optimizer.step(closure)
    assert optimizer.last_step.trials == 10
    assert len(calls) == 11
    assert optimizer.last_step.num_matvecs == 1


def test_gives_up_and_stays():
    x = parameter(1.0, 2.0)

    def closure():
        rises = float((x.detach() - torch.tensor([1.0, 2.0])).norm())
        return x.sum() * 1.0 - x.sum().detach() + rises

    optimizer = ARC([x])
    assert optimizer.step(closure) == 0
    assert optimizer.last_step.status is ArcStatus.GAVE_UP
    assert optimizer.last_step.trials == 11
    assert optimizer.param_groups[0]["sigma"] == 2.0**11
    assert x.tolist() == [1.0, 2.0]


def test_a_trial_that_is_not_finite_is_refused():
    """f = x − log x: Newton's step from 10 ends at −80, where there is no logarithm."""
    x = parameter(10.0)
    optimizer = ARC([x], sigma=1e-6)
    losses = run(optimizer, lambda: x.sum() - x.log().sum(), 1)
    assert optimizer.last_step.trials > 1
    losses += run(optimizer, lambda: x.sum() - x.log().sum(), 20)
    assert x.item() == pytest.approx(1.0)
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("start", [0.0, 1e-170])
def test_at_a_stationary_point_nothing_happens(start):
    x = parameter(start)
    optimizer = ARC([x])
    optimizer.step(lambda: -x.square().sum())
    assert optimizer.last_step.status is ArcStatus.STATIONARY
    assert x.item() == start


def test_a_step_within_rounding_is_taken_and_leaves_sigma():
    x = parameter(1e-4, dtype=torch.float32)
    optimizer = ARC([x])
    optimizer.step(lambda: 100 + x.square().sum())
    assert optimizer.last_step.status is ArcStatus.UNRESOLVED
    assert abs(x.item()) < 1e-7
    assert optimizer.param_groups[0]["sigma"] == 1.0


def test_sigma_does_not_vanish_on_a_quadratic():
    x = parameter(1.0)
    optimizer = ARC([x])
    for _ in range(200):
        with torch.no_grad():
            x.fill_(1.0)
        optimizer.step(lambda: x.square().sum())
    assert optimizer.param_groups[0]["sigma"] > 1e-17


def test_every_evaluation_of_a_step_draws_the_same_random_numbers():
    x, drawn = parameter(0.0), []

    def closure():
        drawn.append(torch.rand(()).item())
        return -x.sum() + (1 + drawn[-1]) * x.abs().sum() ** 3

    optimizer = ARC([x], sigma=1e-2)
    optimizer.step(closure)
    assert len(drawn) > 2
    assert len(set(drawn)) == 1
    optimizer.step(closure)
    assert len(set(drawn)) == 2


def test_resumes_bitwise():
    straight = problem("mlp").model.eval()
    p = problem("mlp")
    stopped = copy.deepcopy(straight)
    first, before = ARC(straight.named_parameters()), ARC(stopped.named_parameters())
    run(first, lambda: p.loss(straight), 6)
    run(before, lambda: p.loss(stopped), 3)
    resumed = ARC(stopped.named_parameters(), sigma=77.0)
    resumed.load_state_dict(before.state_dict())
    run(resumed, lambda: p.loss(stopped), 3)
    assert parameters_equal(straight, stopped)
    assert first.state_dict()["param_groups"] == resumed.state_dict()["param_groups"]


def test_gradients_frozen_parameters_and_schedulers_are_left_alone():
    p = problem("mlp")
    model = p.model.eval()
    model[0].bias.requires_grad_(False)
    frozen = model[0].bias.clone()
    p.loss(model).backward()
    gradient = model[0].weight.grad.clone()
    plain = copy.deepcopy(model)
    optimizer, reference = ARC(model.parameters()), ARC(plain.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
    for _ in range(3):
        optimizer.step(lambda: p.loss(model))
        scheduler.step()
        reference.step(lambda: p.loss(plain))
    assert torch.equal(model[0].bias, frozen)
    assert torch.equal(model[0].weight.grad, gradient)
    assert parameters_equal(model, plain)


def test_runs_under_no_grad_and_with_hooks():
    x, seen = parameter(-1.2, 1.0), []
    optimizer = ARC([x])
    optimizer.register_step_post_hook(lambda *_: seen.append(x.detach().clone()))
    with torch.no_grad():
        optimizer.step(lambda: rosenbrock(x))
    assert len(seen) == 1
    assert seen[0].tolist() != [-1.2, 1.0]


def test_one_group_only():
    with pytest.raises(ConfigError, match="one group"):
        ARC([{"params": [parameter(1.0)]}, {"params": [parameter(2.0)]}])


def test_amos_refuses_an_optimizer_that_evaluates_the_loss_itself():
    model = nn.Linear(2, 1)
    with pytest.raises(ConfigError, match="ARC evaluates the loss itself"):
        AMOS(model.named_parameters(), torch.optim.SGD, ARC)


@pytest.mark.parametrize(
    "wrong",
    [{"sigma": 0.0}, {"sigma": math.nan}, {"tol": 0.0}, {"max_matvecs": 0}, {"max_failures": 0}]
    + [{"eta1": -1.0}, {"gamma1": 0.5}],
)
def test_values_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        ARC([parameter(1.0)], **wrong)


def test_losses_that_cannot_be_differentiated_are_told():
    x = parameter(1.0)
    optimizer = ARC([x])
    with pytest.raises(NotDifferentiableError):
        optimizer.step(lambda: x.detach().sum())
    with pytest.raises(NonfiniteError):
        optimizer.step(lambda: x.sum() * math.nan)
    assert x.item() == 1.0
