"""ELMO and FOSI against closed forms: quadratics, separable cubics, Lemma 3.2."""

import math
from functools import partial

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

import lipprof
from lipprof.advice import Choice
from lipprof.errors import ConfigError, ShapeError
from lipprof.lipschitz import Eigenspaces, elmo_preconditioner, pessimistic_model
from lipprof.optim import ELMO, FOSI

SGD = partial(optim.SGD, lr=0.01)
MOMENTUM = partial(optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1)
ADAM = partial(optim.Adam, lr=0.01)


def spaces_of(parameters, vectors, values, lipschitz=0.0):
    values = torch.as_tensor(values, dtype=torch.float64)
    lipschitz = torch.as_tensor(lipschitz, dtype=torch.float64).expand(len(values))
    return Eigenspaces(tuple(parameters), vectors, values, lipschitz)


def random_problem(seed, n=6):
    """Two parameters of 6 numbers in all, their gradients, and an orthonormal basis in its rows."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parameters = [nn.Parameter(draw(2, 2)), nn.Parameter(draw(n - 4))]
    for p in parameters:
        p.grad = draw(*p.shape)
    return parameters, torch.linalg.qr(draw(n, n)).Q, draw(n)


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def step_of(optimizer, parameters):
    before = flat(parameters)
    optimizer.step()
    return flat(parameters) - before


def test_fosi_in_all_eigenspaces_is_newton_with_absolute_eigenvalues():
    parameters, basis, values = random_problem(0)
    gradient = flat(p.grad for p in parameters)
    optimizer = FOSI(parameters, ADAM, newton_lr=0.5, damping=0.1, trust=None)
    optimizer.observe_eigenspaces(spaces_of(parameters, basis, values))
    hessian = basis.T @ torch.diag(values.abs() + 0.1) @ basis
    newton = -0.5 * torch.linalg.solve(hessian, gradient)
    torch.testing.assert_close(step_of(optimizer, parameters), newton)


@pytest.mark.parametrize(("lipschitz", "rtol"), [(0.0, 1e-12), (1e12, 1e-5)])
def test_elmo_between_newton_and_the_cubic_root(lipschitz, rtol):
    parameters, basis, values = random_problem(1)
    values = values.abs()
    slope = basis @ flat(p.grad for p in parameters)
    optimizer = ELMO(parameters, SGD, trust=None)
    optimizer.observe_eigenspaces(spaces_of(parameters, basis, values, lipschitz))
    along = basis @ step_of(optimizer, parameters)
    size = (2 * slope.abs() / lipschitz).sqrt() if lipschitz else slope.abs() / values
    torch.testing.assert_close(along, -slope.sign() * size, rtol=rtol, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 5),
    kind=st.sampled_from([ELMO, FOSI]),
    base=st.sampled_from([SGD, MOMENTUM, ADAM]),
)
def test_the_step_inside_is_the_same_whatever_the_base(seed, k, kind, base):
    parameters, basis, values = random_problem(seed)
    gradient = flat(p.grad for p in parameters)
    optimizer = kind(parameters, base, trust=None)
    optimizer.observe_eigenspaces(spaces_of(parameters, basis[:k], values[:k], 2.0))
    model = {"slope": (basis[:k] @ gradient).abs(), "curvature": values[:k]}
    size = model["slope"] / values[:k].abs()
    if kind is ELMO:  # eq. 7 as it is printed
        root = (values[:k].square() + 4.0 * model["slope"]).sqrt()
        size = (root - values[:k]) / 2.0
    along = basis[:k] @ step_of(optimizer, parameters)
    torch.testing.assert_close(along, -(basis[:k] @ gradient).sign() * size, rtol=1e-7, atol=1e-9)
    assert torch.equal(flat(p.grad for p in parameters), gradient)


def test_with_sgd_the_complement_steps_along_the_projected_gradient():
    parameters, basis, values = random_problem(2)
    gradient = flat(p.grad for p in parameters)
    optimizer = FOSI(parameters, SGD, trust=None)
    optimizer.observe_eigenspaces(spaces_of(parameters, basis[:2], values[:2]))
    step = step_of(optimizer, parameters)
    torch.testing.assert_close(basis[2:] @ step, -0.01 * basis[2:] @ gradient)


def test_momentum_of_before_does_not_leak_into_the_eigenspaces():
    parameters, basis, values = random_problem(3)
    optimizer = FOSI(parameters, MOMENTUM)
    for _ in range(5):
        optimizer.step()
    for p in parameters:
        p.grad.zero_()
    optimizer.observe_eigenspaces(spaces_of(parameters, basis[:3], values[:3]))
    step = step_of(optimizer, parameters)
    assert float((basis[:3] @ step).abs().max()) < 1e-14
    assert float((basis[3:] @ step).norm()) > 1e-3


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1.0, 0.3]))
def test_elmo_descends_as_guaranteed_on_separable_cubics(seed, scale):
    """Lemma 3.1 on f = Σ gx + λx²/2 + c x³/6, |c| ≤ L."""
    _, basis, values = random_problem(seed)
    p = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    gradient, cubic = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    p.grad = basis.T @ gradient
    optimizer = ELMO([p], SGD, trust=None)
    optimizer.observe_eigenspaces(spaces_of([p], basis, values, cubic.abs() + 0.01))
    optimizer.param_groups[0]["lr"] *= scale
    x = basis @ step_of(optimizer, [p])
    change = (gradient * x + values * x**2 / 2 + cubic * x**3 / 6).sum()
    model = {"slope": gradient.abs(), "curvature": values, "lipschitz": cubic.abs() + 0.01}
    bound = pessimistic_model(x.abs(), **model).sum()
    assert change <= bound + 1e-9 * bound.abs()
    assert bound < 0


def test_lemma_3_2_by_a_matrix_square_root():
    _, basis, values = random_problem(4)
    gradient = torch.randn(6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    along, lipschitz = basis @ gradient, torch.linspace(0.1, 3, 6, dtype=torch.float64)
    hessian = (basis.T @ torch.diag(values) @ basis).numpy()
    bend = (basis.T @ torch.diag(lipschitz * along.abs()) @ basis).numpy()
    inverse = (hessian + scipy.linalg.sqrtm(hessian @ hessian + 2 * bend).real) / 2
    phi = elmo_preconditioner(slope=along.abs(), curvature=values, lipschitz=lipschitz)
    assert (phi > 0).all()
    expected = torch.from_numpy(scipy.linalg.inv(inverse))
    torch.testing.assert_close(basis.T @ torch.diag(phi) @ basis, expected)
    p = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    p.grad = gradient
    optimizer = ELMO([p], SGD, trust=None)
    optimizer.observe_eigenspaces(spaces_of([p], basis, values, lipschitz))
    torch.testing.assert_close(step_of(optimizer, [p]), -expected @ gradient)


@pytest.mark.parametrize(("value", "lipschitz"), [(2.0, math.nan), (2.0, -1.0), (-1.0, 0.0)])
def test_an_eigenspace_without_a_step_is_left_to_the_base(value, lipschitz):
    (parameters, basis, _), (alone, _, _) = random_problem(6), random_problem(6)
    optimizer = ELMO(parameters, MOMENTUM)
    optimizer.observe_eigenspaces(spaces_of(parameters, basis[:1], [value], lipschitz))
    expected = step_of(MOMENTUM(alone), alone)
    torch.testing.assert_close(step_of(optimizer, parameters), expected)


def test_the_trust_clip_is_relative_to_the_parameters():
    parameters, basis, _ = random_problem(7)
    size = flat(parameters).norm()
    optimizer = FOSI(parameters, SGD, trust=0.2)
    optimizer.observe_eigenspaces(spaces_of(parameters, basis[:1], [1e-9]))
    along = basis[:1] @ step_of(optimizer, parameters)
    assert float(along.abs()) == pytest.approx(0.2 * float(size))


def test_a_parameter_without_gradient_is_left_alone():
    (parameters, basis, values), (alone, _, _) = random_problem(8), random_problem(8)
    optimizer = FOSI(parameters, SGD)
    optimizer.observe_eigenspaces(spaces_of(parameters, basis[:2], values[:2]))
    parameters[1].grad = alone[1].grad = None
    assert torch.equal(step_of(optimizer, parameters), step_of(SGD(alone), alone))


def test_eigenspaces_of_a_part_leave_the_rest_to_the_base():
    parameters, _, _ = random_problem(9)
    optimizer = FOSI([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.1}], SGD)
    one = torch.eye(2, dtype=torch.float64)[:1]
    optimizer.observe_eigenspaces(spaces_of(parameters[1:], one, [4.0]))
    optimizer.trust = None
    g = flat(p.grad for p in parameters)
    expected = -g * torch.tensor([0.01] * 4 + [0.25, 0.1], dtype=torch.float64)
    torch.testing.assert_close(step_of(optimizer, parameters), expected)


def test_a_scheduler_scales_both_parts():
    parameters, basis, values = random_problem(10)
    g = flat(p.grad for p in parameters)
    optimizer = FOSI(parameters, SGD, trust=None)
    scheduler = LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    optimizer.observe_eigenspaces(spaces_of(parameters, basis[:1], values[:1]))
    first = step_of(optimizer, parameters)
    scheduler.step()
    torch.testing.assert_close(step_of(optimizer, parameters), first / 2)
    assert float((basis[1:] @ first + 0.01 * basis[1:] @ g).norm()) < 1e-12


def test_a_closure_is_evaluated_once_and_a_group_may_be_added():
    parameters, basis, values = random_problem(11)
    optimizer = FOSI(parameters, SGD)
    optimizer.observe_eigenspaces(spaces_of(parameters, basis[:1], values[:1]))
    late = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [late], "lr": 0.5})
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        late.grad = torch.ones(2)
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert calls == [True]
    assert late.tolist() == [0.5, 0.5]


def test_refusals():
    parameters, basis, values = random_problem(12)
    with pytest.raises(ConfigError, match="closure"):
        FOSI(parameters, optim.LBFGS)
    with pytest.raises(ConfigError, match="trust"):
        ELMO(parameters, SGD, trust=0.0)
    with pytest.raises(ConfigError, match="newton_lr"):
        FOSI(parameters, SGD, newton_lr=0.0)
    with pytest.raises(ConfigError, match="factory"):
        FOSI(parameters, SGD(parameters))
    with pytest.raises(ShapeError, match="n=6"):
        spaces_of(parameters, basis[:, :5], values)
    optimizer = FOSI(parameters[:1], SGD)
    with pytest.raises(ConfigError, match="does not hold"):
        optimizer.observe_eigenspaces(spaces_of(parameters, basis, values))
    with pytest.raises(ConfigError, match="'eigenspaces'"):
        optimizer.load_state_dict(SGD(parameters[:1]).state_dict())


def ill_conditioned_regression():
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(1, -1, 10, dtype=torch.float64)
    inputs = torch.randn(200, 10, generator=generator, dtype=torch.float64) * scales
    labels = (inputs @ torch.randn(10, generator=generator, dtype=torch.float64) > 0).double()
    model = nn.Linear(10, 1, dtype=torch.float64)
    nn.init.constant_(model.weight, 0.01)
    nn.init.zeros_(model.bias)

    def loss(model):
        logits = model(inputs).squeeze(1)
        penalty = 1e-3 * model.weight.square().sum()
        return nn.functional.binary_cross_entropy_with_logits(logits, labels) + penalty

    return model, loss


@pytest.mark.parametrize("kind", [FOSI, ELMO])
def test_beats_its_base_on_an_ill_conditioned_regression(kind, tmp_path):
    """Each at its own best learning rate; the base's lies inside the grid."""

    def final(build, lr):
        model, loss = ill_conditioned_regression()
        optimizer = build(model.parameters(), partial(optim.SGD, lr=lr))
        options = {"top": 4, "bottom": 1, "tol": 1e-3, "every": 10}
        with lipprof.attach(model, optimizer, tmp_path / "run.h5", loss=loss, **options):
            for _ in range(100):
                optimizer.zero_grad()
                loss(model).backward()
                optimizer.step()
        return loss(model).item()

    rates = [1.0, 2.0, 4.0]
    alone = [final(lambda parameters, base: base(parameters), lr) for lr in rates]
    assert alone[1] < min(alone[0], alone[2])
    assert min(final(kind, lr) for lr in rates) < 0.97 * alone[1]


# --- a rule that selects eigenspaces -------------------------------------------------------------


def selected_by_hand(rule, slope, values, lipschitz):
    limit = 3 * values.square() / slope if rule == "newton-safe" else torch.full_like(values, 2.0)
    return (lipschitz < limit) & ((values > 0) | (rule == "threshold"))


@pytest.mark.parametrize("kind", [ELMO, FOSI])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), rule=st.sampled_from(["newton-safe", "threshold"]))
def test_with_a_rule_only_the_selected_eigenspaces_are_left_to_the_second_order_step(
    kind, seed, rule
):
    parameters, basis, values = random_problem(seed)
    twins = [nn.Parameter(p.detach().clone()) for p in parameters]
    for p, twin in zip(parameters, twins, strict=True):
        twin.grad = p.grad.clone()
    lipschitz = 4 * torch.rand(4, generator=torch.Generator().manual_seed(seed)).double()
    slope = (basis[:4] @ flat(p.grad for p in parameters)).abs()
    wanted = selected_by_hand(rule, slope, values[:4], lipschitz)

    optimizer = kind(parameters, MOMENTUM, trust=None, rule=rule, threshold=2.0)
    optimizer.observe_eigenspaces(spaces_of(parameters, basis[:4], values[:4], lipschitz))
    alone = kind(twins, MOMENTUM, trust=None)
    alone.observe_eigenspaces(
        spaces_of(twins, basis[:4][wanted], values[:4][wanted], lipschitz[wanted])
    )
    torch.testing.assert_close(
        step_of(optimizer, parameters), step_of(alone, twins), rtol=1e-9, atol=1e-12
    )
    names = [f"eigenspace {i}" for i in range(1, 5)]
    assert list(optimizer.assigned) == names
    assert [choice is Choice.SECOND for choice in optimizer.assigned.values()] == wanted.tolist()
    assert [s.name for s in optimizer.switches] == [
        n for n, w in zip(names, wanted, strict=True) if w
    ]


def test_choices_hold_until_the_next_observation_are_logged_and_resumed(caplog, tmp_path):
    parameters, basis, _ = random_problem(4)
    values = torch.tensor([3.0, 2.0], dtype=torch.float64)

    def build():
        return FOSI(parameters, SGD, rule="threshold", threshold=1.0)

    def observe(optimizer, lipschitz):
        spaces = spaces_of(parameters, basis[:2], values, torch.tensor(lipschitz).double())
        optimizer.observe_eigenspaces(spaces)

    optimizer = build()
    assert optimizer.assigned == {}
    with caplog.at_level("INFO", logger="lipprof"):
        observe(optimizer, [0.5, math.nan])
        optimizer.step()
        observe(optimizer, [0.5, 0.2])
        optimizer.step()
        optimizer.step()
        observe(optimizer, [7.0, 0.2])
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        optimizer.step()
    first, second = Choice.FIRST, Choice.SECOND
    switches = [(s.iteration, s.name, s.choice) for s in optimizer.switches]
    assert switches == [
        (0, "eigenspace 1", second),
        (1, "eigenspace 2", second),
        (3, "eigenspace 1", first),
    ]
    assert optimizer.assigned == {"eigenspace 1": first, "eigenspace 2": second}
    told = "iteration 3: eigenspace 1 to the first-order optimizer: L = 7.00e+00 ≥"
    assert caplog.messages[-1].startswith(told)
    resumed = build()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.step()
    assert resumed.assigned == optimizer.assigned
    assert resumed.switches == optimizer.switches


def test_only_answers_other_than_the_last_one_are_switches():
    parameters, basis, _ = random_problem(4)
    optimizer = FOSI(parameters, SGD, rule="threshold", threshold=1.0)
    for lipschitz in (math.nan, 7.0, 0.5, math.nan, 0.5, math.nan, 7.0):
        optimizer.observe_eigenspaces(spaces_of(parameters, basis[:1], [3.0], lipschitz))
        assert optimizer.recommendation is None
        optimizer.step()
        assert optimizer.recommendation.evidence.lipschitz == pytest.approx(lipschitz, nan_ok=True)
    switches = [(s.iteration, s.choice) for s in optimizer.switches]
    assert switches == [(2, Choice.SECOND), (6, Choice.FIRST)]


def test_unknown_rules_are_refused():
    parameters, _, _ = random_problem(0)
    with pytest.raises(ConfigError, match="Unknown rule"):
        ELMO(parameters, SGD, rule="regret")
    with pytest.raises(ConfigError, match="threshold"):
        FOSI(parameters, SGD, rule="threshold", threshold=-1.0)
