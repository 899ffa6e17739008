"""AMOS on its own: Lipschitz parameters from the diagonal that Sophia is fed."""

import logging
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn, optim

from lipprof.advice import Choice
from lipprof.optim import AMOS, Sophia
from lipprof.optim.estimate import EstimateSettings

from .problems import Problem, everything, parameters_equal

SETTINGS = {
    "rule": "newton-safe",
    "threshold": 1.0,
    "hysteresis": 2.0,
    "dwell": 2,
    "warmup": 0,
    "alpha": 0.75,
    "epsilon": 1e-12,
    "bias_correction": True,
    "distance_floor": 0.0,
}


@pytest.mark.parametrize("aggregate", ["trace", "mean", "max"])
def test_numbers_match_alg_2_written_out_in_numpy(aggregate):
    rng = np.random.default_rng(0)
    shapes = [(3,), (2, 2)]
    params = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in shapes]
    settings = EstimateSettings(aggregate=aggregate, **SETTINGS)
    estimate = settings.build(["a", "b"], params, [3, 4])
    theta = [[rng.normal(size=shape) for shape in shapes] for _ in range(4)]
    h = [[rng.normal(size=shape) + 3 for shape in shapes] for _ in range(4)]
    g = [rng.normal(size=shape) for shape in shapes]

    diagonal = {}
    for t in range(4):
        for p, value in zip(params, theta[t], strict=True):
            p.data = torch.from_numpy(value)
        after = dict(zip(params, map(torch.from_numpy, h[t]), strict=True))
        estimate.observe(diagonal, after, set(params))
        diagonal = after
        assert estimate.ready is (t > 0)
    for p, value in zip(params, g, strict=True):
        p.grad = torch.from_numpy(value)
    recommendation = estimate.advise(5)

    average, weight = [np.zeros(shape) for shape in shapes], 0.0
    for t in range(1, 4):
        pieces = [(new - old).ravel() for new, old in zip(theta[t], theta[t - 1], strict=True)]
        distance = np.linalg.norm(np.concatenate(pieces))
        weight = 0.75 * weight + 0.25
        for k in range(2):
            change = h[t][k] - h[t - 1][k]
            if aggregate == "trace":
                change = np.full_like(change, change.mean())
            average[k] = 0.75 * average[k] + 0.25 * np.abs(change) / distance
    reduce = np.max if aggregate == "max" else np.mean
    curvature = np.array([h[3][k].mean() for k in range(2)])
    slope = np.array([np.abs(g[k]).mean() for k in range(2)])
    np.testing.assert_allclose(
        recommendation.evidence.lipschitz, [reduce(a) / weight for a in average]
    )
    np.testing.assert_allclose(recommendation.evidence.curvature, curvature)
    np.testing.assert_allclose(recommendation.evidence.slope, slope)
    np.testing.assert_allclose(recommendation.threshold, 3 * curvature**2 / slope)
    assert recommendation.iteration == 5


@pytest.mark.parametrize("aggregate", ["trace", "mean", "max"])
def test_decisions_do_not_depend_on_the_unit_of_the_loss(aggregate):
    switches = []
    for scale in (1.0, 1000.0):
        problem = Problem(scale=scale, dtype=torch.float64)
        model = problem.model()
        amos = AMOS(
            model.named_parameters(),
            partial(optim.SGD, lr=0.05 / scale),
            partial(Sophia, lr=0.01, update_every=5, estimator="hutchinson"),
            aggregate=aggregate,
        )
        generator = torch.Generator().manual_seed(0)
        for iteration in range(100):
            if amos.curvature_due:
                amos.observe_hutchinson(problem.loss(model, iteration), generator)
            problem.train(model, amos, range(iteration, iteration + 1))
        switches.append([(s.iteration, s.name, s.choice) for s in amos.switches])
    assert switches[0] == switches[1]
    assert switches[0]


def test_hutchinson_feeds_all_tensors_wherever_they_are():
    problem = Problem()
    model = problem.model()
    sophia = partial(Sophia, lr=0.01, estimator="hutchinson", update_every=1)
    amos = AMOS(
        model.named_parameters(),
        partial(optim.AdamW, lr=0.01),
        sophia,
        eligible=lambda name, _: name != "2.bias",
    )
    generator = torch.Generator().manual_seed(0)
    for iteration in range(4):
        amos.zero_grad()
        loss = problem.loss(model, iteration)
        amos.observe_hutchinson(loss, generator)
        loss.backward()
        amos.step()
    for name, p in model.named_parameters():
        observed = amos.state[p].get("second", {}).get("num_observed", 0)
        assert observed == (0 if name == "2.bias" else 4)


def test_curvature_lent_by_a_profiler_may_cover_more_and_less_than_may_switch():
    model = Problem().model()
    amos = AMOS(
        model.named_parameters(),
        partial(optim.AdamW, lr=0.01),
        Sophia,
        eligible=lambda name, _: name != "2.bias",
    )
    amos.observe_curvature({model[2].bias: torch.ones(3), model[0].bias: torch.ones(6)})
    assert [p for p, state in amos.state.items() if "second" in state] == [model[0].bias]


def test_a_tensor_never_observed_gets_no_answer():
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), partial(optim.SGD, lr=0.05), partial(Sophia, lr=0.01))
    for iteration in range(6):
        amos.observe_curvature({model[0].weight: (3 + iteration) * torch.ones(6, 5)})
        problem.train(model, amos, range(iteration, iteration + 1))
    assert {switch.name for switch in amos.switches} == {"0.weight"}


def test_following_a_recommendation_turns_the_estimate_off():
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos = AMOS(model.named_parameters(), partial(optim.SGD, lr=0.05), partial(Sophia, lr=0.01))
    sophia = Sophia(reference.parameters(), lr=0.01)
    amos.follow(everything(model, Choice.SECOND))
    for iteration in range(6):
        for net, optimizer in ((model, amos), (reference, sophia)):
            curvature = {p: 10.0**iteration * p.detach() ** 2 for p in net.parameters()}
            optimizer.observe_curvature(curvature)
            problem.train(net, optimizer, range(iteration, iteration + 1))
    assert len(amos.switches) == 4
    assert parameters_equal(model, reference)


def collapse(distance_floor):
    """One number; a burst of curvature sends it to a first-order side that does not move."""
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    amos = AMOS(
        [("p", p)],
        partial(optim.SGD, lr=1e-9),
        partial(Sophia, lr=0.1, betas=(0.9, 0.0), weight_decay=0.0),
        start="second",
        rule="threshold",
        threshold=30.0,
        alpha=0.5,
        distance_floor=distance_floor,
    )
    history = []
    for iteration in range(60):
        size = 20.0 if iteration in {30, 31, 32} else 0.1  # |Δh|; at rest L = 0.1/0.1
        amos.observe_curvature({p: torch.full_like(p, 50 + size * (iteration % 2))})
        p.grad = torch.ones_like(p)
        amos.step()
        history.append(amos.assigned["p"])
    return history


def test_a_floor_on_the_distance_prevents_the_absorbing_collapse(caplog):
    with caplog.at_level(logging.WARNING, logger="lipprof"):
        absorbed = collapse(distance_floor=0.0)
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert absorbed[29] is Choice.SECOND
    assert absorbed[40:] == [Choice.FIRST] * 20
    assert len(warnings) == 1
    assert "hardly move" in warnings[0].getMessage()

    recovered = collapse(distance_floor=0.1)
    assert Choice.FIRST in recovered
    assert recovered[-1] is Choice.SECOND
