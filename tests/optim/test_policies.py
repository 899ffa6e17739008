"""Rules at work in AMOS: with and without measurements, after a warm-up, from a run file."""

from functools import partial

import pytest
import torch
from torch import nn, optim

from lipprof import attach, open_run
from lipprof.advice import Choice, Inverted, NewtonSafe, Quantile, Static
from lipprof.optim import AMOS, Sophia

from .problems import Problem, parameters_equal

FIRST, SECOND = Choice.FIRST, Choice.SECOND
SGD = partial(optim.SGD, lr=0.05)
SOPHIA = partial(Sophia, lr=0.01, update_every=2)
SLOW = partial(optim.SGD, lr=0.01)


def assigned_over(amos, problem, model, iterations):
    """Who was where after each step."""
    told = []
    for iteration in iterations:
        problem.train(model, amos, range(iteration, iteration + 1))
        told.append(dict(amos.assigned))
    return told


def test_a_static_rule_steers_from_the_first_step_without_any_measurement():
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos = AMOS(model.named_parameters(), SGD, SLOW, rule="static(first=['0.*'])")
    alone = [SGD(reference[0].parameters()), SLOW(reference[2].parameters())]
    problem.train(model, amos, range(4))
    problem.train(reference, alone, range(4))
    assert parameters_equal(model, reference)
    assert {s.reason for s in amos.switches} == {"not among those named"}
    assert {s.iteration for s in amos.switches} == {0}


@pytest.mark.parametrize("start", ["first", "second"])
def test_first_then_second_changes_everything_at_its_iteration(start):
    problem = Problem()
    model = problem.model()
    rule = "first-then-second(until=3)"
    amos = AMOS(model.named_parameters(), SGD, SLOW, start=start, rule=rule, dwell=5)
    told = [set(sides.values()) for sides in assigned_over(amos, problem, model, range(6))]
    assert told == [{FIRST}] * 3 + [{SECOND}] * 3


def test_a_resumed_run_changes_sides_as_the_whole_one():
    problem = Problem()
    whole, stopped = problem.model(), problem.model()

    def build(model):
        return AMOS(model.named_parameters(), SGD, SLOW, rule="first-then-second(until=3)")

    straight, before = build(whole), build(stopped)
    problem.train(whole, straight, range(6))
    problem.train(stopped, before, range(3))
    after = build(stopped)
    after.load_state_dict(before.state_dict())
    problem.train(stopped, after, range(3, 6))
    assert parameters_equal(whole, stopped)
    assert straight.switches == after.switches


def test_a_group_added_later_is_decided_at_the_next_step():
    problem = Problem()
    model = problem.model()
    amos = AMOS([*model[0].named_parameters(prefix="0")], SGD, SLOW, rule="random(share=0)")
    problem.train(model, amos, range(2))
    amos.add_param_group({"params": [*model[2].named_parameters(prefix="2")]})
    problem.train(model, amos, range(2, 3))
    assert set(amos.assigned.values()) == {SECOND}


def test_nothing_moves_before_the_warm_up_is_over():
    problem = Problem()
    for rule in ("random(share=0)", "threshold(limit=1e30)"):
        model = problem.model()
        amos = AMOS(model.named_parameters(), SGD, SOPHIA, rule=rule, warmup=5)
        told = []
        for iteration in range(8):
            amos.observe_curvature({
                p: (iteration + 1) * p.detach() ** 2 for p in model.parameters()
            })
            told += assigned_over(amos, problem, model, range(iteration, iteration + 1))
        assert [set(sides.values()) for sides in told] == [{FIRST}] * 5 + [{SECOND}] * 3


def decisions(rule, *, scale=1.0, names=lambda names: names, reduction="mean"):
    """AMOS's own estimate on a small network; sampled labels, as Sophia-G has them."""
    problem = Problem(dtype=torch.float64)
    model = problem.model()
    factor = scale * (5 if reduction == "sum" else 1)  # of a batch of 5 labels
    amos = AMOS(
        names([*model.named_parameters()]),
        partial(optim.SGD, lr=0.05 / factor),
        SOPHIA,
        rule=rule,
    )
    generator = torch.Generator().manual_seed(0)
    for iteration in range(60):
        inputs = problem.inputs[iteration % 64][:5]
        if amos.curvature_due:
            logits = model(inputs)
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
            amos.zero_grad()
            (factor * nn.functional.cross_entropy(logits, drawn)).backward()
            amos.observe_sampled_gradient(1 if reduction == "sum" else 5)
        amos.zero_grad()
        labels = problem.labels[iteration % 64][:5]
        (factor * nn.functional.cross_entropy(model(inputs), labels)).backward()
        amos.step()
    assert amos.switches
    return sorted((s.iteration, s.name, s.choice) for s in amos.switches)


@pytest.mark.parametrize("rule", ["newton-safe", Quantile(0.4), Inverted(NewtonSafe())], ids=str)
def test_decisions_depend_neither_on_the_loss_s_unit_nor_its_reduction_nor_the_order(rule):
    plain = decisions(rule)
    assert decisions(rule, reduction="sum") == plain
    assert decisions(rule, names=lambda names: names[::-1]) == plain


@pytest.mark.parametrize("rule", ["newton-safe", Quantile(0.4)], ids=str)
def test_hutchinson_decisions_do_not_depend_on_the_order(rule):
    """A diagonal that is known exactly, so that only the order differs."""

    def run(order):
        problem = Problem(dtype=torch.float64)
        model = problem.model()
        amos = AMOS(order([*model.named_parameters()]), SGD, SOPHIA, rule=rule)
        for iteration in range(30):
            amos.observe_curvature({
                p: (1 + (iteration + i) % 3) * p.detach() ** 2
                for i, p in enumerate(model.parameters())
            })
            problem.train(model, amos, range(iteration, iteration + 1))
        assert amos.switches
        return sorted((s.iteration, s.name, s.choice) for s in amos.switches)

    assert run(list) == run(lambda names: names[::-1])


def test_a_recorded_recommendation_is_followed_without_a_profiler(tmp_path):
    problem = Problem()
    model = problem.model()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    settings = dict(every=2, top=0, bottom=0, stability=False, rule="quantile(share=0.5)")
    with attach(
        model, optimizer, tmp_path / "run.h5", loss=lambda m: problem.loss(m, 0), **settings
    ):
        problem.train(model, optimizer, range(7))
    with open_run(tmp_path / "run.h5") as run:
        recommendation = run.recommendation()
    assert set(recommendation.choice) == {FIRST, SECOND}

    fresh = problem.model()
    amos = AMOS(fresh.named_parameters(), SGD, SLOW)
    amos.follow(recommendation)
    expected = {name: recommendation[name] for name in amos.assigned}
    for sides in assigned_over(amos, problem, fresh, range(3)):
        assert sides == expected
    assert all("ranks" in switch.reason for switch in amos.switches)

    first = [name for name, choice in expected.items() if choice is FIRST]
    again = AMOS(problem.model().named_parameters(), SGD, SLOW, rule=Static(first))
    assert assigned_over(again, problem, fresh, range(1)) == [expected]
