"""State at a switch."""

from functools import partial

import pytest
import torch
from torch import nn, optim

from lipprof.advice import Choice
from lipprof.optim import AMOS, Sophia
from lipprof.optim.handover import WARM, arriving_state

from .problems import Problem, everything, parameters_equal, recommend

ADAMW = partial(optim.AdamW, lr=0.01)
SGD = partial(optim.SGD, lr=0.05)


def replay(factory, model, gradients):
    """The state of an optimizer that saw these gradients and nothing else."""
    optimizer = factory(model.parameters())
    for gradient in gradients:
        for name, p in model.named_parameters():
            p.grad = gradient[name].clone()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    "kind", sorted(WARM, key=lambda kind: kind.__name__), ids=lambda k: k.__name__
)
def test_a_step_with_zero_lr_leaves_parameters_alone_and_advances_state(kind):
    def model():
        return nn.Linear(3, 4, bias=False)

    away, never_left = model(), model()
    extra = {"momentum": 0.9} if kind is optim.SGD else {}
    paused = kind(away.parameters(), **extra | {"lr": 0.0, "weight_decay": 0.0})
    stepping = kind(never_left.parameters(), **extra | {"lr": 0.1, "weight_decay": 0.0})
    before = away.weight.detach().clone()
    for _ in range(3):
        gradient = torch.randn(4, 3)
        away.weight.grad, never_left.weight.grad = gradient, gradient.clone()
        paused.step()
        stepping.step()
    assert torch.equal(away.weight, before)
    state, expected = paused.state[away.weight], stepping.state[never_left.weight]
    assert state.keys() == expected.keys()
    assert state
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    "first",
    [
        ADAMW,
        partial(ADAMW, amsgrad=True),
        partial(ADAMW, foreach=True),
        partial(SGD, momentum=0.9, nesterov=True),
    ],
)
def test_warm_state_is_that_of_an_optimizer_never_left(first):
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), first, SGD)
    gradients = problem.train(model, amos, range(3))
    amos.follow(everything(model, Choice.SECOND))
    gradients += problem.train(model, amos, range(3, 8))
    amos.follow(everything(model, Choice.FIRST))
    reference_model = problem.model()
    reference = replay(first, reference_model, gradients)
    for p, q in zip(model.parameters(), reference_model.parameters(), strict=True):
        state, expected = amos.state[p]["first"], reference.state[q]
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=0)


def test_restart_deletes_state_on_both_sides():
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), ADAMW, partial(SGD, momentum=0.9), idle_state="restart")
    problem.train(model, amos, range(3))
    amos.follow(everything(model, Choice.SECOND))
    assert not amos.state
    problem.train(model, amos, range(2))
    amos.follow(everything(model, Choice.FIRST))
    assert not amos.state
    problem.train(model, amos, range(1))
    assert all(amos.state[p]["first"]["step"] == 1 for p in model.parameters())
    assert not any("second" in state for state in amos.state.values())


def test_a_restart_is_what_the_constructor_gives():
    problem = Problem()
    model = problem.model()
    accumulator = partial(optim.Adagrad, lr=0.01, initial_accumulator_value=0.5)
    amos = AMOS(model.named_parameters(), SGD, accumulator)
    amos.follow(everything(model, Choice.SECOND))
    problem.train(model, amos, range(2))
    amos.follow(everything(model, Choice.FIRST))
    for p in model.parameters():
        torch.testing.assert_close(amos.state[p]["second"]["sum"], torch.full_like(p, 0.5))


def test_leaving_sophia_keeps_the_curvature_and_nothing_else():
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), ADAMW, Sophia, start="second")
    amos.observe_curvature({p: torch.ones_like(p) for p in model.parameters()})
    problem.train(model, amos, range(2))
    assert all("exp_avg" in amos.state[p]["second"] for p in model.parameters())
    amos.follow(everything(model, Choice.FIRST))
    amos.observe_curvature({p: torch.ones_like(p) for p in model.parameters()})
    for p in model.parameters():
        assert amos.state[p]["second"].keys() == {"hessian", "num_observed"}
        assert amos.state[p]["second"]["num_observed"] == 2


MOMENTUM = {
    "adamw": partial(optim.AdamW, lr=0.1, betas=(0.9, 0.999)),
    "sophia": partial(Sophia, betas=(0.9, 0.95)),
    "sgd": partial(optim.SGD, lr=0.1, momentum=0.9, dampening=0.0),
    "damped": partial(optim.SGD, lr=0.1, momentum=0.9, dampening=0.3),
}
if hasattr(optim, "Muon"):
    MOMENTUM["muon"] = partial(optim.Muon, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("source", MOMENTUM)
@pytest.mark.parametrize("destination", sorted(MOMENTUM.keys() - {"adamw"}))
def test_first_moment_arrives_on_the_scale_of_the_destination(source, destination):
    """After many steps with one gradient every buffer is at its fixed point, whatever its scale."""
    gradient = torch.tensor([[1.0, -2.0], [3.0, 0.5]])

    def settled(name):
        p = nn.Parameter(torch.zeros(2, 2))
        optimizer = MOMENTUM[name]([{"params": [p], "weight_decay": 0.0}])
        for _ in range(300):
            p.grad = gradient.clone()
            optimizer.step()
        return p, optimizer

    p, left = settled(source)
    q, expected = settled(destination)
    arrived = arriving_state(p, (left, left.param_groups[0]), (expected, expected.param_groups[0]))
    ((key, moment),) = arrived.items()
    torch.testing.assert_close(moment, expected.state[q][key], rtol=1e-4, atol=1e-5)


def test_adam_gets_both_moments_or_none():
    p = nn.Parameter(torch.zeros(3))
    sgd = partial(SGD, momentum=0.9)([p])
    adam, amsgrad = ADAMW([p]), ADAMW([p], amsgrad=True)
    for optimizer in (sgd, adam):
        p.grad = torch.ones(3)
        optimizer.step()
    group = amsgrad.param_groups[0]
    assert arriving_state(p, (sgd, sgd.param_groups[0]), (amsgrad, group)) == {}
    state = arriving_state(p, (adam, adam.param_groups[0]), (amsgrad, group))
    assert state["step"] == 1
    torch.testing.assert_close(state["max_exp_avg_sq"], adam.state[p]["exp_avg_sq"])
    assert state["exp_avg"] is not adam.state[p]["exp_avg"]


def test_momentum_is_carried_to_the_second_side_in_warm_state_only():
    problem = Problem()
    for idle_state, carried in (("warm", True), ("restart", False)):
        model = problem.model()
        amos = AMOS(model.named_parameters(), ADAMW, Sophia, idle_state=idle_state)
        problem.train(model, amos, range(3))
        moments = {p: amos.state[p]["first"]["exp_avg"].clone() for p in model.parameters()}
        amos.follow(everything(model, Choice.SECOND))
        for p, moment in moments.items():
            second = amos.state[p].get("second", {})
            assert ("exp_avg" in second) is carried
            assert not carried or torch.equal(second["exp_avg"], moment)


def test_switching_there_and_back_at_once_changes_nothing():
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos = AMOS(model.named_parameters(), ADAMW, Sophia)

    def flap(_):
        amos.follow(everything(model, Choice.SECOND))
        amos.follow(everything(model, Choice.FIRST))

    problem.train(model, amos, range(6), flap)
    problem.train(reference, ADAMW(reference.parameters()), range(6))
    assert parameters_equal(model, reference)


class Unknown(optim.AdamW):
    """An optimizer that the table does not know: a subclass may mean something else by its lr."""


KNOWN = {
    "adam": partial(optim.Adam, lr=0.01),
    "adamw": ADAMW,
    "amsgrad": partial(ADAMW, amsgrad=True),
    "momentum": partial(SGD, momentum=0.9),
    "sgd": SGD,
    "sophia": partial(Sophia, lr=0.01),
    "unknown": partial(Unknown, lr=0.01),
}
if hasattr(optim, "Muon"):
    KNOWN["muon"] = partial(optim.Muon, lr=0.02, momentum=0.9)
ADAMS = ("step", "exp_avg", "exp_avg_sq")
ARRIVALS = {  # key of the state on arrival: (key in the first arm's, factor)
    ("adamw", "sophia"): {"exp_avg": ("exp_avg", 1.0)},
    ("adamw", "momentum"): {"momentum_buffer": ("exp_avg", 10.0)},
    ("adamw", "sgd"): {},
    ("adamw", "adam"): {key: (key, 1.0) for key in ADAMS},
    ("adam", "adamw"): {key: (key, 1.0) for key in ADAMS},
    ("adamw", "amsgrad"): {key: (key, 1.0) for key in ADAMS}
    | {"max_exp_avg_sq": ("exp_avg_sq", 1.0)},
    ("momentum", "adamw"): {},
    ("momentum", "sophia"): {"exp_avg": ("momentum_buffer", 0.1)},
    ("sgd", "adamw"): {},
    ("sophia", "adamw"): {},
    ("sophia", "momentum"): {"momentum_buffer": ("exp_avg", 10.0)},
    ("adamw", "unknown"): {},
    ("unknown", "adamw"): {},
    ("unknown", "sophia"): {},
}
if "muon" in KNOWN:
    ARRIVALS |= {
        ("adamw", "muon"): {"momentum_buffer": ("exp_avg", 1.0)},
        ("momentum", "muon"): {"momentum_buffer": ("momentum_buffer", 0.1)},
        ("muon", "adamw"): {},
        ("muon", "sophia"): {"exp_avg": ("momentum_buffer", 1.0)},
    }
NOT_WARM = {"sgd", "unknown"}


@pytest.mark.parametrize(("first", "second"), ARRIVALS, ids=["-".join(pair) for pair in ARRIVALS])
def test_every_pair_arrives_and_returns_as_the_table_says(first, second):
    problem = Problem()
    model, reference = problem.model(), problem.model()
    name = "0.weight"
    weight, never_left = model[0].weight, reference[0].weight
    amos = AMOS([(name, weight)], KNOWN[first], KNOWN[second])
    gradients = problem.train(model, amos, range(3))
    before = {k: torch.as_tensor(v).clone() for k, v in amos.state[weight].get("first", {}).items()}

    amos.follow(recommend({name: Choice.SECOND}))
    arrived = amos.state[weight].get("second", {})
    expected = ARRIVALS[first, second]
    assert arrived.keys() == expected.keys()
    for key, (origin, factor) in expected.items():
        torch.testing.assert_close(torch.as_tensor(arrived[key]), factor * before[origin])

    gradients += problem.train(model, amos, range(3, 6))
    assert weight.isfinite().all()
    if second == "adamw":  # its own count decides the bias correction
        steps = 6 if "step" in expected else 3
        assert amos.state[weight]["second"]["step"] == steps
    amos.follow(recommend({name: Choice.FIRST}))
    returned = amos.state[weight]
    assert returned.get("second", {}).keys() <= {"hessian"}
    if first in NOT_WARM:
        assert "first" not in returned
        return
    alone = KNOWN[first]([never_left])
    for gradient in gradients:
        never_left.grad = gradient[name].clone()
        alone.step()
    assert returned["first"].keys() == alone.state[never_left].keys()
    for key, value in alone.state[never_left].items():
        torch.testing.assert_close(returned["first"][key], value, rtol=0, atol=0)


@pytest.mark.parametrize(("idle_state", "moments"), [("warm", 2), ("restart", 0)])
def test_memory_of_the_arm_that_is_away(idle_state, moments):
    model = Problem().model()
    amos = AMOS(model.named_parameters(), ADAMW, partial(SGD), idle_state=idle_state)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    amos.step()
    amos.follow(everything(model, Choice.SECOND))
    amos.step()
    entries = sum(p.numel() for p in model.parameters())
    held = [v for s in amos.state.values() for v in s.get("first", {}).values() if v.ndim]
    assert sum(v.numel() * v.element_size() for v in held) == 4 * moments * entries
