"""The one face of AMOS: groups, schedulers, scaling, checkpoints, following, refusals."""

import dataclasses
import logging
import math
from functools import partial

import pytest
import torch
from torch import nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from lipprof.advice import Choice
from lipprof.errors import ConfigError
from lipprof.optim import AMOS, Sophia

from .problems import Problem, everything, parameters_equal, recommend

ADAMW = partial(optim.AdamW, lr=0.01)
SGD = partial(optim.SGD, lr=0.05)
SOPHIA = partial(Sophia, lr=0.02)


def amos_of(model, first=ADAMW, second=SGD, **options):
    return AMOS(model.named_parameters(), first, second, **options)


# --- learning rates and groups ---------------------------------------------------------------


def test_a_scheduler_scales_both_learning_rates():
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos = amos_of(model, eligible=lambda name, _: name == "0.weight", start="second")
    named = dict(reference.named_parameters())
    alone = [SGD([named.pop("0.weight")]), ADAMW(named.values())]

    def halving(optimizer):
        return LambdaLR(optimizer, lambda epoch: 0.5**epoch)

    schedulers = [halving(optimizer) for optimizer in (amos, *alone)]
    for iteration in range(5):
        problem.train(model, amos, range(iteration, iteration + 1))
        problem.train(reference, alone, range(iteration, iteration + 1))
        assert amos.param_groups[0]["second_lr"] == 0.05 * 0.5**iteration
        for scheduler in schedulers:
            scheduler.step()
    assert parameters_equal(model, reference)


def test_one_cycle_drives_learning_rate_and_betas():
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos, adam = amos_of(model), ADAMW(reference.parameters())
    cycles = [OneCycleLR(o, max_lr=0.02, total_steps=8) for o in (amos, adam)]
    for iteration in range(7):
        problem.train(model, amos, range(iteration, iteration + 1))
        problem.train(reference, adam, range(iteration, iteration + 1))
        for cycle in cycles:
            cycle.step()
    assert parameters_equal(model, reference)
    assert amos.param_groups[0]["betas"] == adam.param_groups[0]["betas"]


def test_warmup_from_zero_reaches_both_sides():
    problem = Problem()
    model = problem.model()
    before = problem.model()
    amos = amos_of(model, start="second")
    warmup = LambdaLR(amos, lambda epoch: min(1.0, epoch / 2))
    problem.train(model, amos, range(1))
    assert parameters_equal(model, before)
    warmup.step()
    problem.train(model, amos, range(1))
    assert amos.param_groups[0]["second_lr"] == pytest.approx(0.025)
    assert not parameters_equal(model, before)


def test_groups_carry_their_settings_to_both_sides():
    model = Problem().model()
    first, second = list(model[0].parameters()), list(model[2].parameters())
    amos = AMOS(
        [
            {"params": first, "lr": 0.002, "weight_decay": 0.25},
            {"params": second, "second_lr": 0.5, "second_momentum": 0.75, "eps": 1e-6},
        ],
        ADAMW,
        SGD,
        start="second",
    )
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    amos.step()
    face, other = amos.param_groups
    assert (face["lr"], face["second_lr"]) == (0.002, pytest.approx(0.01))
    assert (other["lr"], other["second_lr"], other["eps"]) == (0.01, 0.5, 1e-6)
    first_groups, second_groups = (arm.groups for arm in amos._arms)
    assert [g["weight_decay"] for g in first_groups] == [0.25, 0.01]
    assert [g["weight_decay"] for g in second_groups] == [0.25, 0]
    assert [g["momentum"] for g in second_groups] == [0, 0.75]
    assert [g["lr"] for g in second_groups] == [pytest.approx(0.01), 0.5]


def test_param_groups_do_not_change_with_the_assignment():
    model = Problem().model()
    amos = amos_of(model)
    before = [list(group["params"]) for group in amos.param_groups]
    amos.follow(everything(model, Choice.SECOND))
    after = [group["params"] for group in amos.param_groups]
    assert all(
        p is q for a, b in zip(before, after, strict=True) for p, q in zip(a, b, strict=True)
    )
    assert [p for g in amos._arms[1].optimizer.param_groups for p in g["params"]] == before[0]


def test_a_group_added_later_takes_part():
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos = AMOS([*model[0].named_parameters(prefix="0")], ADAMW, SGD, start="second")
    alone = SGD(reference[0].parameters())
    problem.train(model, amos, range(2))
    problem.train(reference, alone, range(2))
    amos.add_param_group({"params": [*model[2].named_parameters(prefix="2")], "second_lr": 0.5})
    alone.add_param_group({"params": [*reference[2].parameters()], "lr": 0.5})
    problem.train(model, amos, range(2, 5))
    problem.train(reference, alone, range(2, 5))
    assert parameters_equal(model, reference)
    assert set(amos.assigned.values()) == {Choice.SECOND}

    amos.follow(everything(model, Choice.FIRST))
    problem.train(model, amos, range(5, 7))
    fresh = amos_of(problem.model())
    with pytest.raises(ValueError, match="parameter groups"):
        fresh.load_state_dict(amos.state_dict())


def test_a_group_that_is_refused_leaves_everything_as_it_was():
    problem = Problem()
    model = problem.model()
    amos = AMOS([*model[0].named_parameters(prefix="0")], ADAMW, SGD)
    with pytest.raises(ConfigError, match="same name: 0.weight"):
        amos.add_param_group({"params": [("0.weight", nn.Parameter(torch.ones(2)))]})
    assert len(amos.param_groups) == 1
    problem.train(model, amos, range(1))


# --- what surrounds an optimizer ---------------------------------------------------------------


def test_grad_scaler_skips_and_unscales():
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos, adam = amos_of(model), ADAMW(reference.parameters())
    for net, optimizer in ((model, amos), (reference, adam)):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for iteration in range(5):
            optimizer.zero_grad()
            scaler.scale(problem.loss(net, iteration)).backward()
            if iteration == 2:
                net[0].bias.grad[0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
    assert parameters_equal(model, reference)
    assert amos.state_dict()["amos"]["iteration"] == 4


def test_closures_run_once_and_hooks_fire_once():
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos = amos_of(model, eligible=lambda name, _: name.startswith("0"), start="second")
    calls = []
    amos.register_step_pre_hook(lambda *_: calls.append("before"))
    amos.register_step_post_hook(lambda *_: calls.append("after"))

    def closure():
        calls.append("closure")
        amos.zero_grad()
        loss = problem.loss(model, 0)
        loss.backward()
        return loss

    assert amos.step(closure).item() == problem.loss(reference, 0).item()
    assert calls == ["before", "closure", "after"]


def test_gradients_are_never_written():
    problem = Problem()
    model = problem.model()
    amos = amos_of(model, partial(SGD, momentum=0.9, nesterov=True, weight_decay=0.1), SOPHIA)
    amos.follow(recommend(dict.fromkeys(amos.assigned, Choice.NONE) | {"0.bias": Choice.SECOND}))
    gradients = problem.train(model, amos, range(2))[-1]
    assert all(torch.equal(p.grad, gradients[n]) for n, p in model.named_parameters())


def test_resume_with_a_scheduler_and_an_estimate_is_bitwise(tmp_path):
    problem = Problem()
    straight, stopped = problem.model(), problem.model()

    def build(model):
        amos = amos_of(model, ADAMW, SOPHIA, aggregate="max")
        return amos, CosineAnnealingLR(amos, T_max=20)

    def run(model, amos, scheduler, iterations):
        for iteration in iterations:
            if iteration % 2 == 0:
                amos.observe_curvature({
                    p: (1 + iteration % 3) * p.detach().abs() for p in model.parameters()
                })
            problem.train(model, amos, range(iteration, iteration + 1))
            scheduler.step()

    whole = build(straight)
    run(straight, *whole, range(15))
    before = build(stopped)
    run(stopped, *before, range(7))
    states = [part.state_dict() for part in before]
    torch.save(states, tmp_path / "state.pt")
    after = build(stopped)
    for part, state in zip(
        after, torch.load(tmp_path / "state.pt", weights_only=True), strict=True
    ):
        part.load_state_dict(state)
    run(stopped, *after, range(7, 15))
    assert parameters_equal(straight, stopped)
    assert whole[0].switches == after[0].switches
    assert whole[0].switches
    known, resumed = (amos.state_dict()["amos"]["estimate"] for amos, _ in (whole, after))
    torch.testing.assert_close(resumed, known, rtol=0, atol=0, equal_nan=True)


# --- following ---------------------------------------------------------------------------------


def test_following_moves_logs_and_records(caplog):
    model = Problem().model()
    amos = amos_of(model, eligible=lambda name, _: name != "2.weight")
    choices = {
        "2.bias": Choice.SECOND,
        "2.weight": Choice.SECOND,  # may not switch
        "0.weight": Choice.NONE,
        "0.bias": Choice.FIRST,  # is there already
    }
    with caplog.at_level(logging.INFO, logger="lipprof"):
        (switch,) = amos.follow(recommend(choices, iteration=7))
    assert amos.switches == [switch]
    assert (switch.iteration, switch.name, switch.choice) == (7, "2.bias", Choice.SECOND)
    assert switch.reason == "L = 5.00e-01 < 3λ²/γ = 1.00e+00"
    assert caplog.messages == [
        "iteration 7: 2.bias to the second-order optimizer: L = 5.00e-01 < 3λ²/γ = 1.00e+00"
    ]
    assert amos.assigned == {
        "0.weight": Choice.FIRST,
        "0.bias": Choice.FIRST,
        "2.weight": Choice.FIRST,
        "2.bias": Choice.SECOND,
    }
    assert amos.follow(recommend(choices, iteration=8)) == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        switch.name = "other"


def test_a_recommendation_for_other_tensors_is_refused():
    model = Problem().model()
    names = [name for name, _ in model.named_parameters()]
    amos = amos_of(model, eligible=lambda name, _: name != "2.bias")
    right = dict.fromkeys(names[:3], Choice.SECOND)
    with pytest.raises(ConfigError, match=r"Unknown here: lm\.head; missing in it: none"):
        amos.follow(recommend(right | {"lm.head": Choice.FIRST}))
    with pytest.raises(ConfigError, match=r"missing in it: 0\.bias, 2\.weight"):
        amos.follow(recommend({"0.weight": Choice.FIRST}))
    assert set(amos.assigned.values()) == {Choice.FIRST}
    assert len(amos.follow(recommend(right))) == 3

    nameless = AMOS(model.parameters(), ADAMW, SGD)
    assert list(nameless.assigned) == ["param0", "param1", "param2", "param3"]
    with pytest.raises(ConfigError, match="named_parameters"):
        nameless.follow(recommend(right))


def test_frozen_tensors_need_no_answer():
    model = Problem().model()
    model[0].weight.requires_grad_(False)
    amos = amos_of(model)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(amos.follow(recommend(dict.fromkeys(names, Choice.SECOND)))) == 3


def test_the_plan_says_why_a_tensor_stays():
    if not hasattr(optim, "Muon"):
        pytest.skip("this torch has no Muon")
    model = Problem().model()
    amos = amos_of(model, ADAMW, optim.Muon, eligible=lambda name, _: name != "2.weight")
    plan = amos.plan()
    assert plan["0.weight"] == "may switch"
    assert plan["2.weight"] == "excluded by `eligible`"
    assert "2D" in plan["0.bias"]
    assert len(amos.follow(everything(model, Choice.SECOND))) == 1


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"threshold": -1.0}, "threshold"),
        ({"threshold": math.nan}, "threshold"),
        ({"alpha": 1.0}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"hysteresis": 0.5}, "hysteresis"),
        ({"dwell": 0}, "dwell"),
        ({"distance_floor": -0.1}, "distance_floor"),
        ({"rule": "regret"}, "Unknown rule"),
        ({"rule": "quantile(share=2)"}, r"expected share in \[0, 1\]"),
        ({"rule": "static(first=['0.weigth'])"}, r"'0\.weigth', which fits none .*0\.weight"),
        ({"warmup": -1}, "warmup"),
        ({"warmup": 5, "start": "second"}, "should be the first side"),
        ({"aggregate": "median"}, "trace, mean, max"),
        ({"start": "both"}, "first, second"),
        ({"idle_state": "cold"}, "warm, restart"),
        ({"eligible": lambda *_: False}, "No tensor may use the second optimizer: excluded"),
        ({"first": optim.LBFGS}, "closure"),
        ({"second": "sgd"}, r"`second` is a str.*partial\(SGD"),
        ({"first": partial(optim.SGD, learning_rate=1.0)}, "refuses 0.weight.*learning_rate"),
        ({"second": partial(optim.SGD, lr=-1.0)}, "second optimizer refuses it.*-1.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_refused_before_the_first_step(bad, message):
    arguments = {"first": ADAMW, "second": SGD} | bad
    with pytest.raises(ConfigError, match=message):
        AMOS(Problem().model().named_parameters(), **arguments)


def test_optimizers_instead_of_factories_are_refused():
    model = Problem().model()
    with pytest.raises(ConfigError, match=r"`first` is a AdamW.*functools\.partial\(AdamW"):
        amos_of(model, ADAMW(model.parameters()), SGD)


def test_factories_that_hand_out_an_optimizer_of_other_parameters_are_refused():
    model = Problem().model()
    bound = SGD(Problem().model().parameters())
    with pytest.raises(
        ConfigError, match=r"refuses 0\.weight.* returned a SGD that is not .* just"
    ):
        amos_of(model, lambda params: bound, SGD)
    for second in (lambda params: bound, lambda params: SGD(model.parameters())):
        with pytest.raises(ConfigError, match="No tensor may use .* returned a SGD that is not"):
            amos_of(model, ADAMW, second)
    with pytest.raises(ConfigError, match="returned a NoneType that is not an optimizer"):
        amos_of(model, ADAMW, lambda params: None)


def test_a_first_optimizer_must_take_every_tensor():
    if not hasattr(optim, "Muon"):
        pytest.skip("this torch has no Muon")
    with pytest.raises(ConfigError, match=r"refuses 0\.bias of shape \(6,\): Muon only"):
        amos_of(Problem().model(), optim.Muon, SGD)
    with pytest.raises(ConfigError, match="No tensor may use the second optimizer.*Muon only"):
        AMOS([nn.Parameter(torch.ones(3))], ADAMW, optim.Muon)


def test_states_and_curvature_of_something_else_are_refused():
    model = Problem().model()
    amos = amos_of(model)
    with pytest.raises(ConfigError, match="not of AMOS"):
        amos.load_state_dict(ADAMW(model.parameters()).state_dict())
    with pytest.raises(ConfigError, match="SGD, takes no curvature"):
        amos.observe_sampled_gradient(8)
    assert not amos.curvature_due
    amos.observe_curvature({p: p for p in model.parameters()})  # lent, and not wanted
    assert not amos.state
