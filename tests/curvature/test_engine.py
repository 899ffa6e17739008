"""Which engine serves: exact products where they exist, differences where not; both checked."""

import itertools

import pytest
import torch
from torch import nn

from lipprof.curvature import HessianEngine, ParameterView, ProbeLoss, twice_differentiable
from lipprof.curvature.guards import undisturbed
from lipprof.errors import (
    ConfigError,
    NondeterministicCurvatureError,
    NoSecondDerivativeError,
    NotDifferentiableError,
)
from lipprof.linalg import materialise
from tests.models import KINDS, problem


class OnceOnly(torch.autograd.Function):
    """x³, whose backward torch cannot differentiate."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 3 * x**2


class Cubic(nn.Module):
    """Σ θ³, by the function above or plainly: its Hessian is diag(6θ)."""

    def __init__(self, once):
        super().__init__()
        self.theta = nn.Parameter(torch.linspace(-1.0, 2.0, 12, dtype=torch.float64))
        self.once = once

    def forward(self):
        cubes = OnceOnly.apply(self.theta) if self.once else self.theta**3
        return cubes.sum()


def operator(model, loss, **options):
    engine = HessianEngine(ProbeLoss(model, loss), ParameterView.of(model), **options)
    with undisturbed(model, training=False), twice_differentiable(model):
        found = engine.operator()
        return engine, materialise(found), found.gradient()


def test_differences_take_over_where_there_is_no_second_derivative(caplog):
    model = Cubic(once=True)
    engine, matrix, gradient = operator(model, lambda m: m())
    assert engine.name == "differences"
    assert "central differences" in caplog.text
    assert 0 < engine.relative_error < 1e-5
    expected = torch.diag(6 * model.theta.detach())
    torch.testing.assert_close(matrix, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, 3 * model.theta.detach() ** 2)


def test_insisting_on_exact_products_raises_instead():
    with pytest.raises(NoSecondDerivativeError, match="once_differentiable"):
        operator(Cubic(once=True), lambda m: m(), engine="retained")


def test_exact_products_are_preferred():
    model = Cubic(once=False)
    engine, matrix, _ = operator(model, lambda m: m())
    assert (engine.name, engine.relative_error) == ("retained", 0.0)
    torch.testing.assert_close(matrix, torch.diag(6 * model.theta.detach()))


@pytest.mark.parametrize("kind", KINDS)
def test_all_engines_see_one_hessian(kind):
    p = problem(kind, torch.float64, count=12)
    found = {e: operator(p.model, p.loss, engine=e) for e in ("retained", "traced", "differences")}
    exact = found["retained"][1]
    torch.testing.assert_close(found["traced"][1], exact, rtol=1e-9, atol=1e-12)
    scale = float(exact.abs().max())
    torch.testing.assert_close(found["differences"][1], exact, rtol=0.0, atol=1e-5 * scale)


def test_a_loss_that_changes_is_refused_unless_allowed():
    model, counter = Cubic(once=False), itertools.count(1)

    def loss(m):
        return m() * next(counter)

    with pytest.raises(NondeterministicCurvatureError, match="check_deterministic=False"):
        operator(model, loss)
    operator(model, loss, check_deterministic=False)


def test_the_check_is_made_once():
    model, calls = Cubic(once=False), []

    def loss(m):
        calls.append(1)
        return m()

    engine = HessianEngine(ProbeLoss(model, loss), ParameterView.of(model), engine="retained")
    for _ in range(3):
        with undisturbed(model):
            engine.operator()
    checked = len(calls)
    with undisturbed(model):
        engine.operator()
    assert len(calls) == checked + 1
    assert engine.consistency.product == 0


def test_an_asymmetric_matrix_is_no_reason_for_differences():
    class Detached(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            ctx.save_for_backward(x, y)
            return x * y

        @staticmethod
        def backward(ctx, gradient):
            x, y = ctx.saved_tensors
            return gradient * y, gradient * x.detach()

    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.randn(5, dtype=torch.float64))
            self.y = nn.Parameter(torch.randn(5, dtype=torch.float64))

        def forward(self):
            return Detached.apply(self.x, self.y).square().sum()

    with pytest.raises(NotDifferentiableError, match="not symmetric"):
        operator(Product(), lambda m: m())


def test_half_precision_is_told_where_it_limits_the_residual(caplog):
    p = problem("attention")

    def loss(m):
        with torch.autocast("cpu", torch.bfloat16):
            return p.loss(m)

    for closure, told in ((p.loss, 0), (loss, 1)):
        caplog.clear()
        engine = operator(p.model, closure, engine="retained")[0]
        engine.warn_of_precision(1e-4)
        engine.warn_of_precision(1e-4)
        assert caplog.text.count("half precision") == told


def test_a_limit_that_nothing_fits_is_refused_with_numbers():
    p = problem("mlp")
    with pytest.raises(ConfigError, match=r"the 0\.0 MB that memory_limit= leaves.*retained .* MB"):
        operator(p.model, p.loss, memory_limit=10)
