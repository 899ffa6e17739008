"""AMOS and Sophia where torch expects an optimizer: schedulers, scaling, compilation, copies."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler as schedules

from lipprof.advice import Choice
from lipprof.errors import ConfigError
from lipprof.optim import AMOS, Sophia

from .problems import (
    Problem,
    everything,
    parameters_equal,
    recommend,
    with_first_weight_second,
)

ADAMW = partial(optim.AdamW, lr=0.01)
MOMENTUM = partial(optim.SGD, lr=0.05, momentum=0.9)
SOPHIA = partial(Sophia, lr=0.02)
MIXED = (Choice.SECOND, Choice.FIRST, Choice.SECOND, Choice.FIRST)


def mixed(problem, model, first=ADAMW, second=SOPHIA, **options):
    """AMOS with tensors on both sides, four steps along."""
    amos = AMOS(model.named_parameters(), first, second, **options)
    problem.train(model, amos, range(2))
    amos.follow(recommend(dict(zip(amos.assigned, MIXED, strict=True))))
    problem.train(model, amos, range(2, 4))
    return amos


SCHEDULERS = {
    "step": lambda o: schedules.StepLR(o, 2),
    "multistep": lambda o: schedules.MultiStepLR(o, [2, 4]),
    "constant": schedules.ConstantLR,
    "linear": schedules.LinearLR,
    "exponential": lambda o: schedules.ExponentialLR(o, 0.9),
    "polynomial": schedules.PolynomialLR,
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 5),
    "restarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 2),
    "cyclic": lambda o: schedules.CyclicLR(o, 0.001, 0.1),
    "one cycle": lambda o: schedules.OneCycleLR(o, 0.1, total_steps=9),
    "lambda": lambda o: schedules.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "multiplicative": lambda o: schedules.MultiplicativeLR(o, lambda _: 0.9),
    "sequential": lambda o: schedules.SequentialLR(
        o, [schedules.ConstantLR(o), schedules.ExponentialLR(o, 0.9)], [2]
    ),
    "chained": lambda o: schedules.ChainedScheduler([
        schedules.ConstantLR(o),
        schedules.ExponentialLR(o, 0.9),
    ]),
    "plateau": lambda o: schedules.ReduceLROnPlateau(o, patience=0),
    "averaging": lambda o: optim.swa_utils.SWALR(o, 0.05),
}


def test_every_scheduler_of_torch_is_tried():
    known = {
        name
        for name, kind in vars(schedules).items()
        if isinstance(kind, type)
        and issubclass(kind, schedules.LRScheduler)
        and not name.startswith("_")
    }
    tried = {
        type(make(ADAMW([nn.Parameter(torch.ones(1))]))).__name__ for make in SCHEDULERS.values()
    }
    assert known - {"LRScheduler"} <= tried


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("factory", [ADAMW, MOMENTUM], ids=["adamw", "momentum"])
def test_a_scheduler_drives_either_side_as_it_drives_the_optimizer_alone(schedule, factory):
    problem = Problem()
    models = [problem.model() for _ in range(3)]
    optimizers = [
        AMOS(models[0].named_parameters(), factory, SOPHIA),
        AMOS(models[1].named_parameters(), factory, factory, start="second"),
        factory(models[2].parameters()),
    ]
    steppers = [SCHEDULERS[schedule](optimizer) for optimizer in optimizers]
    for iteration in range(7):
        for model, optimizer, stepper in zip(models, optimizers, steppers, strict=True):
            problem.train(model, optimizer, range(iteration, iteration + 1))
            stepper.step(*([1.0] if schedule == "plateau" else []))
    assert parameters_equal(models[0], models[2])
    if schedule not in {"cyclic", "one cycle"}:  # these change momentum, the first side's alone
        for p, q in zip(models[1].parameters(), models[2].parameters(), strict=True):
            torch.testing.assert_close(p, q)


@pytest.mark.parametrize("side", ["first", "second"])
@pytest.mark.parametrize(
    "tensors", [(False, False), (True, True), (True, False), (False, True)], ids=str
)
def test_learning_rates_may_be_tensors(side, tensors):
    """Schedulers write into them; the same before and after a checkpoint."""
    problem = Problem()
    model, reference = problem.model(), problem.model()

    def factories():
        rates = (torch.tensor(r) if t else r for r, t in zip((0.01, 0.02), tensors, strict=True))
        return [partial(kind, lr=lr) for kind, lr in zip((optim.AdamW, Sophia), rates, strict=True)]

    def build():
        amos = AMOS(model.named_parameters(), *factories(), start=side)
        return amos, schedules.ExponentialLR(amos, 0.5)

    alone = (ADAMW if side == "first" else SOPHIA)(reference.parameters())
    amos, halving = build()
    expected = schedules.ExponentialLR(alone, 0.5)
    for iteration in range(6):
        problem.train(model, amos, range(iteration, iteration + 1))
        problem.train(reference, alone, range(iteration, iteration + 1))
        halving.step()
        expected.step()
        if iteration == 2:
            states = copy.deepcopy((amos.state_dict(), halving.state_dict()))
            amos, halving = build()
            amos.load_state_dict(states[0])
            halving.load_state_dict(states[1])
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert float(amos.param_groups[0]["second_lr"]) == pytest.approx(0.02 * 0.5**5)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@pytest.mark.parametrize("kind", ["amos", "sophia"])
def test_a_copy_goes_on_with_its_own_parameters(again, kind):
    problem = Problem()
    model = problem.model()
    optimizer = mixed(problem, model) if kind == "amos" else SOPHIA(model.parameters())
    optimizer.observe_curvature({p: p.detach().abs() for p in model.parameters()})
    schedules.ConstantLR(optimizer)  # wraps ``step``
    problem.train(model, optimizer, range(4, 6))
    twin, copied = again((model, optimizer))
    before = copy.deepcopy(model)
    problem.train(twin, copied, range(6, 9))
    assert parameters_equal(model, before)
    assert not parameters_equal(twin, before)
    problem.train(model, optimizer, range(6, 9))
    assert parameters_equal(twin, model)
    if kind == "amos":
        copied.follow(everything(twin, Choice.FIRST))
        assert len(copied.switches) > len(optimizer.switches)


# Dynamo's own imports warn.
compiling = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


@compiling
@pytest.mark.parametrize(
    ("backend", "first"),
    [
        ("eager", MOMENTUM),
        pytest.param("aot_eager", ADAMW, marks=pytest.mark.slow),
        pytest.param("inductor", ADAMW, marks=pytest.mark.slow),
    ],
    ids=["eager-momentum", "aot_eager-adamw", "inductor-adamw"],
)
def test_a_compiled_step_is_the_step(backend, first):
    torch.compiler.reset()
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos, eager = mixed(problem, model, first), mixed(problem, reference, first)
    compiled = torch.compile(amos.step, backend=backend)
    for iteration in range(4, 9):
        for net in (model, reference):
            net.zero_grad()
            problem.loss(net, iteration).backward()
        compiled()
        eager.step()
        if iteration == 6:
            for optimizer, net in ((amos, model), (eager, reference)):
                optimizer.follow(everything(net, Choice.SECOND))
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert amos.state_dict()["amos"]["iteration"] == 9


@compiling
def test_sophia_is_compiled_twice_and_not_at_every_step():
    torch.compiler.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    problem = Problem()
    model = problem.model()
    sophia = Sophia(model.parameters(), lr=torch.tensor(0.01))
    step = torch.compile(sophia.step, backend=backend)
    for iteration in range(8):
        model.zero_grad()
        problem.loss(model, iteration).backward()
        step()
        sophia.param_groups[0]["lr"].mul_(0.5)
    assert len(graphs) <= 2  # with and without state


@pytest.mark.parametrize("first", [ADAMW, partial(optim.AdamW, lr=0.01, fused=True)])
@pytest.mark.parametrize("second", [SOPHIA, partial(optim.SGD, lr=0.05, fused=True)])
def test_grad_scaler_with_arms_that_could_scale_themselves(first, second):
    problem = Problem()
    model, amos, reference, alone = with_first_weight_second(problem, first, second)
    for net, optimizers in ((model, [amos]), (reference, alone)):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for iteration in range(5):
            net.zero_grad()
            scaler.scale(problem.loss(net, iteration)).backward()
            if iteration == 2:
                for p in net.parameters():
                    p.grad.view(-1)[0] = torch.inf
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 2.0**9
    assert parameters_equal(model, reference)


def test_flags_in_groups_reach_the_arm_that_they_are_for():
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos = AMOS(
        [
            {"params": [*model[0].named_parameters(prefix="0")], "foreach": True, "maximize": True},
            {"params": [*model[2].named_parameters(prefix="2")], "fused": True},
        ],
        ADAMW,
        SOPHIA,
    )
    first = [
        (group["foreach"], group["fused"], group["maximize"]) for group in amos._arms[0].groups
    ]
    assert first == [(True, None, True), (None, True, False)]
    assert [group["foreach"] for group in amos._arms[1].groups] == [None, None]
    alone = ADAMW([
        {"params": [*reference[0].parameters()], "foreach": True, "maximize": True},
        {"params": [*reference[2].parameters()], "fused": True},
    ])
    problem.train(model, amos, range(4))
    problem.train(reference, alone, range(4))
    assert parameters_equal(model, reference)


def test_nothing_is_read_from_the_device():
    """Meta tensors have no data: whatever looks at a number of theirs fails."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    amos = AMOS(model.named_parameters(), partial(ADAMW, foreach=True), SOPHIA)
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    for choices in ((Choice.FIRST,) * 4, MIXED, MIXED[::-1], (Choice.SECOND,) * 4):
        amos.follow(recommend(dict(zip(amos.assigned, choices, strict=True))))
        amos.step()
        amos.step()
    assert len(amos.switches) >= 4


def test_gradients_and_numbers_that_sophia_cannot_average_are_refused():
    model = nn.Embedding(4, 2, sparse=True)
    amos = AMOS(model.named_parameters(), partial(optim.SGD, lr=0.1), SOPHIA, start="second")
    model(torch.tensor([1, 3])).sum().backward()
    before = model.weight.detach().clone()
    with pytest.raises(ConfigError, match="sparse=False"):
        amos.step()
    assert torch.equal(model.weight, before)

    twisted = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ConfigError, match=r"complex64.*view_as_real"):
        Sophia([twisted])
    amos = AMOS([("a", twisted), ("b", nn.Parameter(torch.ones(2)))], ADAMW, SOPHIA)
    assert "complex64" in amos.plan()["a"]
    assert amos.plan()["b"] == "may switch"


def test_zero_grad_hooks_and_printing():
    problem = Problem()
    model = problem.model()
    amos = mixed(problem, model)
    calls = []
    amos.register_state_dict_post_hook(lambda *_: calls.append("saved"))
    amos.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    amos.load_state_dict(amos.state_dict())
    assert calls == ["saved", "loaded"]
    amos.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in model.parameters())
    amos.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    before = copy.deepcopy(model)
    amos.step()
    assert parameters_equal(model, before)
    assert "second_lr: 0.02" in repr(amos)
