"""Against real steps of the real optimizers, and against where they really diverge."""

import copy
from functools import partial

import pytest
import torch
from torch import nn, optim

import lipprof.optim.step_rules  # noqa: F401  (registers Sophia and AMOS)
from lipprof.curvature import HessianOperator, ParameterView, gradient_graph
from lipprof.curvature.preconditioned import (
    PreconditionedOperator,
    read_preconditioner,
    stability,
)
from lipprof.errors import ConfigError, ShapeError
from lipprof.linalg import DenseOperator, materialise
from lipprof.optim import AMOS, Sophia
from tests.linalg.spectra import with_spectrum

Adam = partial(optim.Adam, lr=0.1, betas=(0.0, 0.9), eps=1e-3)
AdamW = partial(optim.AdamW, lr=0.1, betas=(0.0, 0.9), eps=1e-3, weight_decay=0.2)
NAdam = partial(optim.NAdam, lr=0.1, betas=(0.0, 0.9), eps=1e-3, weight_decay=0.2)
RAdam = partial(optim.RAdam, lr=0.1, betas=(0.0, 0.9), eps=1e-3, weight_decay=0.2)
RMSprop = partial(optim.RMSprop, lr=0.1, eps=1e-3)
WITHOUT_MOMENTUM = {
    "sgd": partial(optim.SGD, lr=0.1),
    "sgd decay": partial(optim.SGD, lr=0.1, weight_decay=0.2),
    "adam": Adam,
    "adam fused": partial(Adam, fused=True),
    "adam one by one": partial(Adam, foreach=False),
    "adam tensor lr": partial(Adam, lr=torch.tensor(0.1, dtype=torch.float64)),
    "adam decay": partial(Adam, weight_decay=0.2),
    "amsgrad": partial(Adam, amsgrad=True),
    "adamw": AdamW,
    "adamw amsgrad": partial(AdamW, amsgrad=True),
    "nadam": NAdam,
    "nadamw": partial(NAdam, decoupled_weight_decay=True),
    "radam": RAdam,
    "radamw": partial(RAdam, decoupled_weight_decay=True),
    "adamax": partial(optim.Adamax, lr=0.1, betas=(0.0, 0.9), eps=1e-3, weight_decay=0.2),
    "rmsprop": RMSprop,
    "rmsprop centered decay": partial(RMSprop, centered=True, weight_decay=0.2),
    "adagrad": partial(optim.Adagrad, lr=0.1, lr_decay=0.3, weight_decay=0.2),
    "adagrad started": partial(optim.Adagrad, lr=0.1, initial_accumulator_value=0.5),
    "sophia": partial(Sophia, lr=0.1, betas=(0.0, 0.9), rho=0.5, weight_decay=0.2),
}


def tensors(dtype=torch.float64):
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((3, 2), (5,), ())]


def view_of(parameters):
    return ParameterView((f"p{i}", p) for i, p in enumerate(parameters))


def random_gradients(parameters):
    return [torch.randn_like(p) for p in parameters]


def step_on(optimizer, parameters, gradients):
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient.clone()
    optimizer.step()
    if isinstance(optimizer, Sophia):
        optimizer.observe_curvature({p: torch.randn_like(p) for p in parameters})


def flat(parts):
    return torch.cat([part.detach().flatten() for part in parts])


@pytest.mark.parametrize("steps", [0, 1, 9])
@pytest.mark.parametrize("name", WITHOUT_MOMENTUM)
def test_the_next_step_is_the_preconditioned_gradient(name, steps):
    parameters = tensors()
    optimizer = WITHOUT_MOMENTUM[name](parameters)
    for _ in range(steps):
        step_on(optimizer, parameters, random_gradients(parameters))
    gradients = random_gradients(parameters)
    view = view_of(parameters)
    preconditioner = read_preconditioner(optimizer, view, flat(gradients))

    before = flat(parameters)
    step_on(optimizer, parameters, gradients)
    (group,) = optimizer.param_groups
    lr, decoupled = 0.1, name in {"adamw", "adamw amsgrad", "nadamw", "radamw", "sophia"}
    decay = lr * group["weight_decay"] if decoupled else 0.0
    assert preconditioner.momentum_limit == pytest.approx(2 - decay)
    assert preconditioner.learning_rate == pytest.approx(lr)
    effective = flat(gradients) + preconditioner.decay * before
    predicted = -decay * before - (2 - decay) * preconditioner.scale * effective
    torch.testing.assert_close(flat(parameters) - before, predicted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", WITHOUT_MOMENTUM)
def test_without_a_gradient_it_is_that_of_the_last_step(name):
    parameters = tensors()
    optimizer = WITHOUT_MOMENTUM[name](parameters)
    step_on(optimizer, parameters, random_gradients(parameters))
    gradients = random_gradients(parameters)
    coming = read_preconditioner(optimizer, view_of(parameters), flat(gradients))
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient
    optimizer.step()
    last = read_preconditioner(optimizer, view_of(parameters))
    torch.testing.assert_close(last.scale, coming.scale, rtol=1e-14, atol=0)


# The edge: the real optimizer on a quadratic, its preconditioner held still by decay rates of
# nearly 1 and by gradients too small to matter.
STILL = 1 - 1e-13
BIG = torch.tensor(1e15)


def frozen(optimizer, **state):
    """Give every tensor this state, as if after very many steps."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            spread = torch.linspace(0.5, 2.0, p.numel(), dtype=p.dtype).view(p.shape)
            optimizer.state[p] = {
                key: value.clone() if key in {"step", "mu_product"} else value * spread
                for key, value in state.items()
            }
    return optimizer


def adam_like(kind, **settings):
    def build(groups):
        optimizer = kind(groups, lr=1.0, **settings)
        state = {"step": BIG, "exp_avg": torch.tensor(0.0), "exp_avg_sq": torch.tensor(1.0)}
        if settings.get("amsgrad"):
            state["max_exp_avg_sq"] = torch.tensor(2.0)
        if kind is optim.NAdam:
            state["mu_product"] = torch.tensor(0.0)
        return frozen(optimizer, **state)

    return build


def sgd(**settings):
    return lambda groups: optim.SGD(groups, lr=1.0, **settings)


def rmsprop(groups):
    state = {"step": BIG, "square_avg": torch.tensor(4.0), "momentum_buffer": torch.tensor(0.0)}
    return frozen(optim.RMSprop(groups, lr=1.0, alpha=STILL, momentum=0.8), **state)


def sophia(groups):
    state = {"exp_avg": torch.tensor(0.0), "hessian": torch.tensor(3.0)}
    settings = {"betas": (0.7, 0.9), "rho": 0.1, "weight_decay": 1e-2}
    return frozen(Sophia(groups, lr=1.0, **settings), **state)


MIXED = [{"lr": 0.3, "momentum": 0.9}, {"lr": 2.0, "momentum": 0.5, "nesterov": True}]
MIXED_ADAM = [
    {"lr": 0.3, "betas": (0.95, STILL), "weight_decay": 0.05},
    {"lr": 2.0, "betas": (0.2, STILL)},
]
EDGES = {
    "sgd": (sgd(), [{}]),
    "decay": (sgd(weight_decay=0.5), [{}]),
    "heavy ball": (sgd(momentum=0.9), [{}]),
    "dampened": (sgd(momentum=0.8, dampening=0.6), [{}]),
    "nesterov": (sgd(momentum=0.9, nesterov=True), [{}]),
    "two rates": (sgd(), [{"lr": 0.2}, {"lr": 3.0}]),
    "two momenta": (sgd(), MIXED),
    "adam": (adam_like(optim.Adam, betas=(0.9, STILL)), [{}]),
    "adam decay": (adam_like(optim.Adam, betas=(0.9, STILL), weight_decay=0.3), [{}]),
    "amsgrad": (adam_like(optim.Adam, betas=(0.9, STILL), amsgrad=True), [{}]),
    "adamw": (adam_like(optim.AdamW, betas=(0.9, STILL), weight_decay=0.02), [{}]),
    "adamw in groups": (adam_like(optim.AdamW), MIXED_ADAM),
    "nadam": (adam_like(optim.NAdam, betas=(0.9, STILL)), [{}]),
    "rmsprop momentum": (rmsprop, [{}]),
    "sophia": (sophia, [{}]),
}


def quadratic(start):
    matrix = with_spectrum(torch.linspace(0.5, 6.0, 8, dtype=torch.float64))
    parameters = [nn.Parameter(start * torch.ones(n, dtype=torch.float64)) for n in (3, 5)]

    def loss():
        theta = torch.cat(parameters)
        return theta @ matrix @ theta / 2

    view = view_of(parameters)
    return parameters, loss, HessianOperator(view, [gradient_graph(loss(), view)])


def scale_to(ratio, optimizer, operator):
    """Scale all learning rates until the reported ratio to the edge is ``ratio``."""
    factor = 0.0
    while abs(factor - 1) > 1e-9:  # decoupled decay makes it not quite proportional to the rates
        factor = ratio / stability(operator, optimizer, tol=1e-10).edge_ratio
        for group in optimizer.param_groups:
            group["lr"] *= factor


@pytest.mark.parametrize("name", EDGES)
def test_one_percent_around_the_edge_separates_convergence_from_divergence(name):
    build, groups = EDGES[name]
    start = 1e-9
    grown = {}
    for ratio in (0.99, 1.01):
        parameters, loss, operator = quadratic(start)
        members = [parameters] if len(groups) == 1 else [[p] for p in parameters]
        optimizer = build([{"params": p, **g} for p, g in zip(members, groups, strict=True)])
        scale_to(ratio, optimizer, operator)
        for _ in range(1000):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            grown[ratio] = float(flat(parameters).norm()) / start
            if not 1e-2 < grown[ratio] < 1e4:
                break
    assert grown[0.99] < 1e-2
    assert grown[1.01] > 1e3


def model_and_operator(dtype=torch.float64, scale=1.0):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)
    inputs, targets = torch.randn(30, 4, dtype=dtype), torch.randn(30, 2, dtype=dtype)

    def loss():
        return scale * (model(inputs) - targets).square().mean()

    def operator():
        view = ParameterView.of(model)
        return HessianOperator(view, [gradient_graph(loss(), view)])

    return model, loss, operator


def trained(model, loss, optimizer, steps=5):
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return optimizer


def test_the_matrix_by_hand():
    model, loss, operator = model_and_operator()
    optimizer = trained(model, loss, optim.AdamW(model.parameters(), lr=0.02, betas=(0.8, 0.95)))
    preconditioned = PreconditionedOperator(
        operator(), read_preconditioner(optimizer, ParameterView.of(model))
    )
    second = flat([optimizer.state[p]["exp_avg_sq"] for p in model.parameters()])
    p = (second / (1 - 0.95**5)).sqrt() + 1e-8
    root = (0.02 / p).sqrt()
    limit = (2 - 0.02 * 0.01) * 1.8 / 0.2
    expected = root[:, None] * materialise(operator()) * root / limit
    torch.testing.assert_close(materialise(preconditioned), expected)

    found = stability(operator(), optimizer, tol=1e-8)
    top = torch.linalg.eigvalsh(expected)[-1]
    assert found.edge_ratio == pytest.approx(float(top), rel=1e-6)
    assert found.converged
    assert found.sharpness_limit == pytest.approx(limit / 0.02)
    assert found.sharpness == pytest.approx(float(top) * limit / 0.02, rel=1e-6)


def test_gradient_descent_has_the_plain_sharpness_over_two_over_the_learning_rate():
    model, _, operator = model_and_operator()
    found = stability(operator(), optim.SGD(model.parameters(), lr=0.3), tol=1e-8)
    top = float(torch.linalg.eigvalsh(materialise(operator()))[-1])
    assert found.sharpness == pytest.approx(top, rel=1e-6)
    assert found.sharpness_limit == pytest.approx(2 / 0.3)
    assert found.edge_ratio == pytest.approx(top * 0.3 / 2, rel=1e-6)
    assert found.excluded == {}


@pytest.mark.parametrize(
    "build", [partial(optim.SGD, lr=0.15), partial(optim.RMSprop, lr=1e-4)], ids=["sgd", "rmsprop"]
)
def test_full_batch_training_settles_at_the_edge(build):
    """Progressive sharpening ends where the ratio is 1: Cohen et al. (2021, 2022)."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(200, 10), torch.randn(200, 3)
    layers = [nn.Linear(10, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3)]
    model = nn.Sequential(*layers)

    def loss():
        return (model(inputs) - targets).square().mean()

    optimizer = trained(model, loss, build(model.parameters()), steps=1100)
    ratios = []
    for _ in range(5):
        trained(model, loss, optimizer, steps=20)
        view = ParameterView.of(model)
        hessian = HessianOperator(view, [gradient_graph(loss(), view)])
        ratios.append(stability(hessian, optimizer).edge_ratio)
    assert sum(ratios) / 5 == pytest.approx(1.0, abs=0.05)


def test_adams_ratio_does_not_depend_on_the_scale_of_the_loss():
    ratios = []
    for scale in (1.0, 1e-3):
        model, loss, operator = model_and_operator(scale=scale)
        optimizer = trained(model, loss, optim.Adam(model.parameters(), lr=0.01, eps=0.0))
        ratios.append(stability(operator(), optimizer, tol=1e-8).edge_ratio)
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-6)


def test_groups_with_different_rates_have_a_ratio_but_no_single_sharpness():
    model, loss, operator = model_and_operator()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}]
    optimizer = trained(model, loss, optim.Adam(groups, lr=0.01))
    found = stability(operator(), optimizer)
    assert found.edge_ratio > 0
    assert found.learning_rate is found.sharpness is found.sharpness_limit is None
    assert found.momentum_limit == pytest.approx(38)


def test_a_learning_rate_of_zero_is_infinitely_far_from_the_edge():
    model, _, operator = model_and_operator()
    found = stability(operator(), optim.SGD(model.parameters(), lr=0.0))
    assert found.edge_ratio == 0
    assert found.sharpness is None


@pytest.mark.parametrize("name", WITHOUT_MOMENTUM)
@pytest.mark.parametrize("steps", [0, 1])
def test_the_optimizer_is_only_read(name, steps):
    parameters = tensors()
    optimizer = WITHOUT_MOMENTUM[name](parameters)
    gradients = random_gradients(parameters)
    for _ in range(steps):
        step_on(optimizer, parameters, gradients)
    before, values = copy.deepcopy(optimizer.state_dict()), flat(parameters)
    versions = [
        t._version for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)
    ]
    read_preconditioner(optimizer, view_of(parameters), flat(gradients))
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
    assert torch.equal(flat(parameters), values)
    assert versions == [
        t._version for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)
    ]


def test_bfloat16_states_are_read_in_float32():
    parameters = tensors(torch.bfloat16)
    optimizer = optim.Adam(parameters, lr=1e-3)
    gradients = random_gradients(parameters)
    step_on(optimizer, parameters, gradients)
    found = read_preconditioner(optimizer, view_of(parameters))
    second = flat([optimizer.state[p]["exp_avg_sq"] for p in parameters]).float()
    expected = 1e-3 / 38 / ((second / (1 - 0.999)).sqrt() + 1e-8)
    assert found.scale.dtype == torch.float32
    torch.testing.assert_close(found.scale, expected, rtol=1e-5, atol=0)


def test_before_the_first_step_a_gradient_is_needed():
    model, _, operator = model_and_operator()
    hessian = operator()
    for kind in (optim.Adam, optim.Adagrad, Sophia):
        optimizer = kind(model.parameters(), lr=0.01)
        with pytest.raises(ConfigError, match="no state of it yet"):
            stability(hessian, optimizer)
        assert stability(hessian, optimizer, gradient=hessian.gradient()).edge_ratio > 0
    with pytest.raises(ShapeError, match="n=44"):
        read_preconditioner(optimizer, hessian.view, torch.zeros(3, dtype=torch.float64))


def test_what_has_no_diagonal_preconditioner_is_left_out_with_a_reason():
    model, loss, operator = model_and_operator()
    partly = trained(model, loss, optim.Adam(model[0].parameters(), lr=0.01))
    found = stability(operator(), partly, tol=1e-8)
    assert found.excluded == dict.fromkeys(("2.weight", "2.bias"), "Adam does not step it")
    matrix = materialise(operator())[:30, :30]
    root = read_preconditioner(partly, ParameterView.of(model)).scale.sqrt()
    top = torch.linalg.eigvalsh(root[:, None] * matrix * root)[-1]
    assert found.edge_ratio == pytest.approx(float(top), rel=1e-6)

    with pytest.raises(ConfigError, match="no rule for the steps of ASGD.*AdamW"):
        stability(operator(), optim.ASGD(model.parameters()))
    with pytest.raises(ConfigError, match="maximizes"):
        stability(operator(), optim.SGD(model.parameters(), lr=0.1, maximize=True))

    class Mine(optim.Adam):
        pass

    with pytest.raises(ConfigError, match="no rule for the steps of Mine"):
        stability(operator(), Mine(model.parameters()))


def test_decay_that_diverges_by_itself_is_named():
    model, _, operator = model_and_operator()
    hessian = operator()
    optimizer = optim.AdamW(model.parameters(), lr=5.0, weight_decay=0.5)
    with pytest.raises(ConfigError, match="lr \\* weight_decay = 2.5"):
        stability(hessian, optimizer, gradient=hessian.gradient())


def test_amos_reads_every_tensor_from_the_optimizer_that_steps_it():
    model, loss, operator = model_and_operator()
    amos = AMOS(
        model.named_parameters(),
        first=partial(optim.AdamW, lr=0.02),
        second=partial(Sophia, lr=0.01, betas=(0.5, 0.9)),
        eligible=lambda name, p: p.ndim == 2,
        start="second",
    )
    curvature = {p: torch.rand_like(p) for p in (model[0].weight, model[2].weight)}
    amos.observe_curvature(curvature)
    trained(model, loss, amos)
    amos.param_groups[0]["lr"] *= 0.5  # a scheduler, between two steps
    found = read_preconditioner(amos, ParameterView.of(model))
    assert found.excluded == {}
    parts = dict(zip(("w0", "b0", "w1", "b1"), found.scale.split([24, 6, 12, 2]), strict=True))
    state = amos.state[model[0].bias]["first"]
    adam = (state["exp_avg_sq"] / (1 - 0.999**5)).sqrt() + 1e-8
    torch.testing.assert_close(parts["b0"], 0.01 / ((2 - 0.01 * 0.01) * 19) / adam)
    state = amos.state[model[0].weight]["second"]
    sophia = torch.maximum(0.01 * state["hessian"], state["exp_avg"].abs()).flatten()
    torch.testing.assert_close(parts["w0"], 0.005 / ((2 - 0.005 * 0.1) * 3) / sophia)


def test_a_muon_arm_of_amos_is_left_out():
    model, loss, operator = model_and_operator(torch.float32)
    amos = AMOS(
        model.named_parameters(),
        first=partial(optim.AdamW, lr=0.02),
        second=partial(optim.Muon, lr=0.01),
        start="second",
    )
    trained(model, loss, amos)
    found = stability(operator(), amos)
    assert found.excluded == dict.fromkeys(
        ("0.weight", "2.weight"), "there is no rule for the steps of Muon"
    )
    assert found.edge_ratio > 0


def test_any_operator_over_parameters_can_be_preconditioned():
    class Constant(DenseOperator):
        def __init__(self, matrix, view):
            super().__init__(matrix)
            self.view = view

    parameters = tensors()
    operator = Constant(torch.eye(12, dtype=torch.float64), view_of(parameters))
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.5}]
    assert stability(operator, optim.SGD(groups, lr=0.1)).edge_ratio == pytest.approx(0.25)
