"""Sophia against a scalar reference in plain Python, and against closed-form diagonals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lipprof.errors import ConfigError, ShapeError
from lipprof.optim import Sophia
from lipprof.optim.sophia import sophia_direction

from .problems import Problem, parameters_equal


def scalar_sophia(theta, gradients, diagonals, *, lr, beta1, beta2, rho, decay, eps):
    """Algorithm 3 of the paper for one number; `diagonals[t]` is None where none is observed."""
    m = h = 0.0
    trajectory = []
    for g, d in zip(gradients, diagonals, strict=True):
        if d is not None:
            h = beta2 * h + (1 - beta2) * d
        m = beta1 * m + (1 - beta1) * g
        theta -= lr * decay * theta
        theta -= lr * min(max(m / max(rho * h, eps), -1.0), 1.0)
        trajectory.append(theta)
    return trajectory


numbers = st.floats(-10, 10, width=32)


@given(
    theta=numbers,
    steps=st.lists(st.tuples(numbers, st.one_of(st.none(), numbers)), min_size=1, max_size=8),
    decay=st.floats(0, 1),
    rho=st.floats(0.01, 10),
)
def test_matches_the_scalar_reference(theta, steps, decay, rho):
    p = nn.Parameter(torch.tensor([theta], dtype=torch.float64))
    optimizer = Sophia([p], lr=0.1, betas=(0.8, 0.7), rho=rho, weight_decay=decay, eps=1e-6)
    reference = scalar_sophia(
        theta,
        *zip(*steps, strict=True),
        lr=0.1,
        beta1=0.8,
        beta2=0.7,
        rho=rho,
        decay=decay,
        eps=1e-6,
    )
    for (gradient, diagonal), expected in zip(steps, reference, strict=True):
        if diagonal is not None:
            optimizer.observe_curvature({p: torch.tensor([diagonal], dtype=torch.float64)})
        p.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        assert p.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_direction_is_newton_inside_the_clip_and_sign_outside():
    momentum = [torch.tensor([0.5, -0.5, 5.0, -5.0, 1.0, torch.nan])]
    hessian = [torch.tensor([2.0, 2.0, 2.0, 2.0, -3.0, 1.0])]
    direction = sophia_direction(momentum, hessian, rho=0.5, eps=1e-12)[0]
    expected = torch.tensor([0.5, -0.5, 1.0, -1.0, 1.0, torch.nan])
    torch.testing.assert_close(direction, expected, equal_nan=True)


def test_without_curvature_it_is_sign_momentum():
    problem = Problem()
    model = problem.model()
    before = [p.detach().clone() for p in model.parameters()]
    problem.train(model, Sophia(model.parameters(), lr=0.25, weight_decay=0.0), range(1))
    for p, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close((p - old).abs(), torch.full_like(p, 0.25))


def test_foreach_equals_one_tensor_at_a_time_and_leaves_gradients_alone():
    problem = Problem()
    models = [problem.model(), problem.model()]
    for model, foreach in zip(models, (True, False), strict=True):
        optimizer = Sophia(model.parameters(), lr=1e-2, foreach=foreach)
        optimizer.observe_curvature({p: p.detach().square() for p in model.parameters()})
        gradients = problem.train(model, optimizer, range(5))
        for name, p in model.named_parameters():
            assert torch.equal(p.grad, gradients[-1][name])
    assert parameters_equal(*models)


def test_sampled_gradient_estimates_the_diagonal_of_a_softmax_layer():
    """Gauss-Newton = Hessian for logits z: diag(p) − ppᵀ, averaged over the batch's rows."""
    generator = torch.Generator().manual_seed(0)
    z = nn.Parameter(torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64))
    rows, draws = 16, 4000
    p = z.detach().softmax(0)
    optimizer = Sophia([z], betas=(0.9, 1 - 1 / draws))
    for _ in range(draws):
        labels = torch.multinomial(p, rows, replacement=True, generator=generator)
        z.grad = None
        nn.functional.cross_entropy(z.expand(rows, 3), labels).backward()
        optimizer.observe_sampled_gradient(batch_size=rows)
    torch.testing.assert_close(optimizer.diagonal()[z], p * (1 - p), rtol=0.06, atol=0)


def test_hutchinson_is_exact_where_the_hessian_is_diagonal():
    scale = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    p = nn.Parameter(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = Sophia([p, unused], estimator="hutchinson")
    loss = (scale * p**3).sum() / 6
    optimizer.observe_hutchinson(loss, torch.Generator().manual_seed(0))
    torch.testing.assert_close(optimizer.diagonal()[p], scale * p.detach())
    assert not optimizer.diagonal()[unused].any()
    loss.backward()
    torch.testing.assert_close(p.grad, scale * p.detach() ** 2 / 2)


def test_diagonal_is_unbiased_from_the_first_observation():
    p, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    optimizer = Sophia([p, other], betas=(0.9, 0.99))
    for _ in range(3):
        optimizer.observe_curvature({p: torch.tensor([2.0, -4.0])})
    assert list(optimizer.diagonal()) == [p]
    torch.testing.assert_close(optimizer.diagonal()[p], torch.tensor([2.0, -4.0]))


def test_curvature_is_due_every_few_steps_also_after_a_resume():
    problem = Problem()
    model = problem.model()
    optimizer = Sophia(model.parameters(), update_every=3)
    due = []
    problem.train(model, optimizer, range(4), lambda _: due.append(optimizer.curvature_due))
    resumed = Sophia(model.parameters(), update_every=3)
    resumed.load_state_dict(optimizer.state_dict())
    problem.train(model, resumed, range(4, 7), lambda _: due.append(resumed.curvature_due))
    assert due == [True, False, False, True, False, False, True]


def test_resume_is_bitwise(tmp_path):
    problem = Problem()
    straight, stopped = problem.model(), problem.model()

    def feed(optimizer, model):
        optimizer.observe_curvature({p: 1 + p.detach() ** 2 for p in model.parameters()})

    for model in (straight, stopped):
        optimizer = Sophia(model.parameters(), lr=1e-2)
        feed(optimizer, model)
        problem.train(model, optimizer, range(4))
        if model is stopped:
            torch.save(optimizer.state_dict(), tmp_path / "state.pt")
            optimizer = Sophia(model.parameters(), lr=1e-2)
            optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        feed(optimizer, model)
        problem.train(model, optimizer, range(4, 8))
    assert parameters_equal(straight, stopped)


def test_closure_runs_once_with_gradients_enabled():
    p = nn.Parameter(torch.ones(1))
    optimizer = Sophia([p], lr=0.5, weight_decay=0.0)

    def closure():
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0
    assert p.item() == 0.5


@pytest.mark.parametrize(
    "bad",
    [
        {"lr": -1.0},
        {"lr": math.nan},
        {"rho": 0.0},
        {"betas": (0.9, 1.0)},
        {"weight_decay": -0.1},
        {"eps": 0.0},
        {"estimator": "gbn"},
        {"update_every": 0},
    ],
    ids=str,
)
def test_refuses_values_out_of_range(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Sophia([nn.Parameter(torch.zeros(1))], **bad)


def test_refuses_curvature_it_cannot_place():
    p, stranger = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = Sophia([p])
    with pytest.raises(ConfigError, match="does not hold"):
        optimizer.observe_curvature({stranger: torch.zeros(2)})
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        optimizer.observe_curvature({p: torch.zeros(3)})
    with pytest.raises(ConfigError, match="No parameter has a gradient"):
        optimizer.observe_sampled_gradient(8)
    with pytest.raises(ConfigError, match="batch_size"):
        optimizer.observe_sampled_gradient(0)
    with pytest.raises(ConfigError, match="estimator='gnb'"):
        optimizer.observe_hutchinson(p.sum())
    assert not optimizer.state[p]
