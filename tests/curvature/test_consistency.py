from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lipprof.curvature import (
    ParameterView,
    ProbeLoss,
    retained_hessian,
    twice_differentiable,
    undisturbed,
)
from lipprof.curvature.consistency import checked_operator
from lipprof.curvature.hessian.differences import DifferenceOperator
from lipprof.errors import NondeterministicCurvatureError, NonfiniteError, NotDifferentiableError
from tests.curvature.test_guards import assert_same, states
from tests.models import KINDS, problem


def checked(model, loss, **keywords):
    with twice_differentiable(model):
        return checked_operator(
            lambda: retained_hessian(ProbeLoss(model, loss), ParameterView.of(model)),
            model,
            **keywords,
        )


class OwnGenerator(nn.Module):
    """Dropout that draws where lipprof cannot seed."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        keep = torch.rand(x.shape, generator=self.generator, dtype=x.dtype) > 0.5
        return x.mul_(keep)  # in place: its input is gone when it returns


class Reversal(torch.autograd.Function):
    """As domain-adversarial networks use it."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


class CarelessProduct(torch.autograd.Function):
    """a·b, whose backward forgets that the derivative by a depends on b."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return grad * b.detach(), grad * a


class Counting(nn.Module):
    def __init__(self, holder=None):
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.calls = 0
        self.holder = holder

    def forward(self, x):
        counted = self if self.holder is None else self.holder
        counted.calls += 1
        return self.linear(x) * counted.calls


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_networks_are_consistent(kind, dtype, training):
    p = problem(kind, dtype)
    p.model.train(training)
    before = states(p.model)
    operator, found = checked(p.model, p.loss)
    assert found.loss == found.gradient == found.product == 0.0
    assert found.asymmetry < 1e3 * torch.finfo(dtype).eps
    assert operator.loss == pytest.approx(found.loss + operator.loss)
    assert_same(before, states(p.model))


def test_spectral_norm_in_train_mode_is_consistent_because_its_vectors_are_put_back():
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))
    inputs = torch.randn(10, 4)
    _, found = checked(model, lambda m: m(inputs).square().mean())
    assert found.product == 0.0


def test_a_layer_with_random_numbers_of_its_own_is_named():
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), OwnGenerator(), nn.Linear(8, 3))
    inputs = torch.randn(20, 5)
    match = r"part at layer '2' \(OwnGenerator, in train mode\).*check_deterministic=False"
    with pytest.raises(NondeterministicCurvatureError, match=match):
        checked(model, lambda m: m(inputs).square().mean())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_counter_in_a_module_is_put_back():
    inputs = torch.randn(20, 5)
    model = Counting()
    _, found = checked(model, lambda m: m(inputs).square().mean())
    assert found.loss == found.product == 0.0
    assert model.calls == 0


def test_a_model_with_state_outside_of_its_modules_is_named():
    inputs = torch.randn(20, 5)
    model = Counting(SimpleNamespace(calls=0))
    with pytest.raises(NondeterministicCurvatureError, match=r"part at the model \(Counting"):
        checked(model, lambda m: m(inputs).square().mean())


def test_a_closure_that_draws_a_new_batch_is_named():
    p = problem("mlp")
    generator = torch.Generator().manual_seed(0)

    def loss(m):
        chosen = torch.randint(0, 40, (8,), generator=generator)
        return F.cross_entropy(m(p.inputs[chosen]), p.targets[chosen])

    with pytest.raises(NondeterministicCurvatureError, match=r"inputs to the model.*probe="):
        checked(p.model, loss)


def test_a_closure_with_state_of_its_own_is_named():
    p = problem("mlp")
    factors = iter(range(1, 9))
    with pytest.raises(NondeterministicCurvatureError, match="in the loss closure itself"):
        checked(p.model, lambda m: next(factors) * p.loss(m))


def test_another_path_through_the_model_is_named():
    model = nn.ModuleDict({"a": nn.Linear(5, 1), "b": nn.Linear(5, 1)})
    inputs, turns = torch.randn(20, 5), iter("abab")
    with pytest.raises(NondeterministicCurvatureError, match="another path, at layer 'b'"):
        checked(model, lambda m: m[next(turns)](inputs).square().mean())


def test_noise_in_the_backward_alone_is_told_from_noise_in_the_forward():
    model = nn.Linear(5, 3)
    inputs = torch.randn(20, 5)
    generator = torch.Generator().manual_seed(0)

    def loss(m):
        y = m(inputs).tanh()
        noise = 1 + 0.01 * torch.randn(y.shape, generator=generator)
        y.register_hook(lambda grad: grad * noise)
        return y.square().mean()

    with pytest.raises(NondeterministicCurvatureError, match="use_deterministic_algorithms"):
        checked(model, loss)


class TwoVectors(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.rand(6, dtype=torch.float64)) for _ in range(2))


def test_a_backward_that_detaches_too_much_makes_the_hessian_asymmetric():
    """Of sum(a·b): H = [[0, 0], [1, 0]] instead of [[0, 1], [1, 0]]."""

    def loss(m):
        return CarelessProduct.apply(m.a, m.b).sum()

    with pytest.raises(NotDifferentiableError, match="not symmetric"):
        checked(TwoVectors(), loss)
    operator, found = checked(TwoVectors(), loss, limit=10.0)
    assert found.asymmetry == pytest.approx(1.0)
    assert operator.matvec(torch.ones(12).double()).tolist() == [1.0] * 6 + [0.0] * 6


def test_gradient_reversal_has_no_symmetric_differences():
    p = problem("mlp", torch.float64)
    p.model.eval()

    def loss(m):
        return F.cross_entropy(m[3](Reversal.apply(m[1](m[0](p.inputs)))), p.targets)

    with pytest.raises(NotDifferentiableError, match="gradient reversal"):
        checked_operator(
            lambda: DifferenceOperator(ParameterView.of(p.model), ProbeLoss(p.model, loss)), p.model
        )


def test_differences_are_judged_by_their_own_accuracy():
    p = problem("attention")
    p.model.eval()
    build = lambda: DifferenceOperator(ParameterView.of(p.model), ProbeLoss(p.model, p.loss))  # noqa: E731
    operator, found = checked_operator(build, p.model)
    assert found.product == 0.0
    assert found.asymmetry < 10 * operator.step.relative_error


def test_a_loss_without_curvature_is_consistent():
    _, found = checked(nn.Linear(3, 1), lambda m: m(torch.ones(2, 3)).sum())
    assert found.asymmetry == found.product == 0.0


def test_a_product_that_is_nan_is_told():
    """|x|^1.5 at zero: loss and gradient are 0, the second derivative is 0 · inf."""
    model = TwoVectors()
    with torch.no_grad():
        model.a.zero_()
    with pytest.raises(NonfiniteError, match="product is NaN"):
        checked(model, lambda m: (m.a.abs() ** 1.5).sum())


def test_costs_two_evaluations_and_three_products():
    p = problem("mlp")
    counts = {"builds": 0, "products": 0}

    def build():
        counts["builds"] += 1
        operator = retained_hessian(ProbeLoss(p.model, p.loss), ParameterView.of(p.model))
        matvec = operator.matvec

        def counted(vector):
            counts["products"] += 1
            return matvec(vector)

        operator.matvec = counted
        return operator

    with undisturbed(p.model):
        checked_operator(build, p.model)
    assert counts == {"builds": 2, "products": 3}
