"""Every kind of learning rate schedule drives both arms as it would drive them alone."""

from functools import partial

import pytest
import torch
from torch import optim
from torch.optim import lr_scheduler

from lipprof.optim import AMOS

from .problems import Problem, with_first_weight_second

FIRST_LR, SECOND_LR = 0.01, 0.05
ADAMW = partial(optim.AdamW, lr=FIRST_LR)
MOMENTUM = partial(optim.SGD, lr=SECOND_LR, momentum=0.9)


def one_cycle(optimizer, factor):
    return lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=factor * 0.03,
        total_steps=12,
        cycle_momentum=not isinstance(optimizer, optim.SGD),
    )


def warmup_then_cosine(optimizer, factor):
    warmup = lr_scheduler.LambdaLR(optimizer, lambda epoch: epoch / 3)  # from 0
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=8, eta_min=0.001 * factor)
    return lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[3])


def chained(optimizer, factor):
    return lr_scheduler.ChainedScheduler([
        lr_scheduler.ConstantLR(optimizer, factor=0.1, total_iters=4),
        lr_scheduler.ExponentialLR(optimizer, gamma=0.9),
    ])


def plateau(optimizer, factor):
    return lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=0, min_lr=0.002 * factor, eps=0
    )


@pytest.mark.parametrize("schedule", [one_cycle, warmup_then_cosine, chained, plateau])
def test_both_arms_follow_as_they_would_alone(schedule):
    problem = Problem(dtype=torch.float64)
    model, amos, reference, alone = with_first_weight_second(problem, ADAMW, MOMENTUM)
    ratio = SECOND_LR / FIRST_LR
    schedulers = [schedule(amos, 1.0), schedule(alone[0], ratio), schedule(alone[1], 1.0)]
    metric = (1.0,) if schedule is plateau else ()
    rates = []
    for iteration in range(10):
        problem.train(model, amos, range(iteration, iteration + 1))
        problem.train(reference, alone, range(iteration, iteration + 1))
        rates.append(amos.param_groups[0]["second_lr"])
        assert rates[-1] == pytest.approx(alone[0].param_groups[0]["lr"], rel=1e-12)
        for scheduler in schedulers:
            scheduler.step(*metric)
    assert len(set(rates)) > 3
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_a_learning_rate_of_the_second_arm_may_be_set_during_training():
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), ADAMW, MOMENTUM)
    problem.train(model, amos, range(1))
    group = amos.param_groups[0]
    group["second_lr"] = 0.2
    problem.train(model, amos, range(1, 2))
    assert amos._arms[1].groups[0]["lr"] == group["second_lr"] == 0.2
    group["lr"] = FIRST_LR / 2
    problem.train(model, amos, range(2, 3))
    assert amos._arms[1].groups[0]["lr"] == pytest.approx(0.1)
    resumed = AMOS(model.named_parameters(), ADAMW, MOMENTUM)
    resumed.load_state_dict(amos.state_dict())
    problem.train(model, resumed, range(3, 4))
    assert resumed._arms[1].groups[0]["lr"] == pytest.approx(0.1)


def test_from_a_learning_rate_of_zero_the_second_is_not_scaled():
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), partial(optim.AdamW, lr=0.0), MOMENTUM)
    for lr in (0.0, 0.01):
        amos.param_groups[0]["lr"] = lr
        problem.train(model, amos, range(1))
        assert amos._arms[0].groups[0]["lr"] == lr
        assert amos._arms[1].groups[0]["lr"] == SECOND_LR
