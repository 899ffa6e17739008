"""The self-test of third derivatives: what it lets pass, what it catches, and what replaces it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lipprof.curvature import (
    CurvatureGradients,
    ParameterView,
    ProbeLoss,
    retained_hessian,
    thrice_differentiable,
    twice_differentiable,
    undisturbed,
)
from lipprof.curvature.third import curvature_gradients
from lipprof.curvature.third import products as third
from lipprof.curvature.third.check import ERROR_LIMIT
from lipprof.demo.gpt import CharGPT
from lipprof.errors import ConfigError, ThirdDerivativeError
from lipprof.linalg import eigenpairs
from tests.curvature.test_third import Tripled, Vector, unit
from tests.models import KINDS, problem


def gradients_of(model, loss, *, count=1, **keywords):
    view = ParameterView.of(model)
    gradients = CurvatureGradients(view, ProbeLoss(model, loss, **keywords))
    vectors = torch.stack([unit(view.n, i, view.dtype) for i in range(count)])
    return gradients, gradients(vectors)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_gradients_agree_with_float64_differences(kind, mode):
    """Dropout and batch statistics in train mode; data captured by the closure in float32."""
    p = problem(kind)
    p.model.train(mode == "train")
    gradients, _ = gradients_of(p.model, p.loss)
    assert gradients.method == "autograd"
    assert gradients.test.evidence == "float64 differences"
    assert gradients.test.error < 1e-4


def test_through_kinks():
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(216, 3)
    )
    images, targets = torch.randn(64, 1, 14, 14), torch.randint(0, 3, (64,))
    gradients, _ = gradients_of(model, lambda m: F.cross_entropy(m(images), targets))
    assert gradients.test.evidence == "float64 differences"
    assert gradients.test.error < 1e-3


@pytest.fixture
def transformer():
    """A GPT with LayerNorm, its loss on fixed tokens, and its three top eigenvectors."""
    model = CharGPT(9, length=6, layers=1, width=8, heads=2)
    tokens = torch.randint(0, 9, (6, 7))
    loss = ProbeLoss(model, lambda m: m.loss((tokens[:, :-1], tokens[:, 1:])))
    pairs = eigenpairs(graphs(loss, twice_differentiable), top=3, bottom=0, tol=1e-3)
    return loss, pairs.vectors


def graphs(loss, kernels):
    with undisturbed(loss.model), kernels(loss.model):
        return retained_hessian(loss, ParameterView.of(loss.model))


def test_a_wrong_third_derivative_is_caught_and_replaced(transformer, monkeypatch, caplog):
    """Through the fused LayerNorm, as torch differentiates it."""
    loss, vectors = transformer
    view = ParameterView.of(loss.model)
    right = CurvatureGradients(view, loss)
    expected = right(vectors)
    assert right.method == "autograd"
    assert right.test.error < 1e-5
    monkeypatch.setattr(third, "thrice_differentiable", twice_differentiable)
    gradients = CurvatureGradients(view, loss)
    torch.testing.assert_close(gradients(vectors), expected, rtol=0, atol=1e-4)
    assert gradients.method == "differences"
    assert gradients.test.error > 0.3
    assert "off by" in caplog.text
    torch.testing.assert_close(gradients(vectors), expected, rtol=0, atol=1e-4)
    unchecked = CurvatureGradients(view, loss, check=False)(vectors)
    assert (unchecked - expected).norm() > 0.3 * expected.norm()


def test_a_wrong_third_derivative_of_a_replayed_step_is_refused(transformer):
    loss, vectors = transformer
    gradients = CurvatureGradients(ParameterView.of(loss.model))
    for _ in range(2):  # it is tested until it passes
        with pytest.raises(ThirdDerivativeError, match=r"not symmetric.*thrice_differentiable"):
            gradients(vectors, graphs(loss, twice_differentiable))
    found = gradients(vectors, graphs(loss, thrice_differentiable))
    assert gradients.test.evidence == "symmetry"
    assert gradients.test.error < 1e-5
    torch.testing.assert_close(found, CurvatureGradients(gradients.view, loss)(vectors))


def test_a_missing_third_derivative_is_replaced(caplog):
    model = Vector(1.0, 2.0)
    gradients, found = gradients_of(model, lambda m: Tripled.apply(m.theta).square().sum())
    v = unit(2)
    expected = 120 * v**2 * model.theta.detach() ** 3  # of θ⁶
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=0)
    assert gradients.method == "differences"
    assert "once_differentiable" in caplog.text


def test_what_replaces_a_missing_derivative_must_be_the_same_function():
    """In float64 the closure computes something else: differences as it is serve."""
    model = Vector(1.0, 2.0).float()

    def loss(m):
        scale = 1 if m.theta.dtype is torch.float32 else 3
        return scale * Tripled.apply(m.theta).square().sum()

    gradients, found = gradients_of(model, loss)
    expected = 120 * unit(2, 0, torch.float32) ** 2 * model.theta.detach() ** 3
    assert (found[0] - expected).norm() < 2 * ERROR_LIMIT * expected.norm()
    assert gradients.test.evidence == "differences"


def test_derivatives_that_are_not_finite_do_not_pass():
    """|x|^2.5 at zero: H = 0, and the third derivative 0 · inf."""
    model = Vector(0.0, 0.0)
    view = ParameterView.of(model)
    with pytest.raises(ThirdDerivativeError, match="not symmetric"):
        CurvatureGradients(view, ProbeLoss(model, lambda m: (m.theta.abs() ** 2.5).sum()))(
            unit(2)[None]
        )


def test_a_missing_third_derivative_that_torch_is_silent_about_is_replaced():
    model = Vector(1.0, 2.0)
    gradients, found = gradients_of(model, lambda m: Tripled.apply(m.theta).sum())
    torch.testing.assert_close(found[0], 6 * unit(2) ** 2, rtol=1e-6, atol=0)
    assert gradients.method == "differences"
    assert gradients.test.error == pytest.approx(1.0)


class OnlyFloat32(nn.Module):
    """Stands for a kernel without float64; ``kinks``: differences in float32 are meaningless."""

    def __init__(self, kinks):
        super().__init__()
        self.linear, self.head = nn.Linear(8, 256), nn.Linear(256, 3)
        self.activation = _triangle if kinks else torch.tanh

    def forward(self, x):
        y = self.linear(x)
        if not y.dtype.is_floating_point or y.dtype is torch.float64:
            raise TypeError("float32 only")
        return self.head(self.activation(y))


def _triangle(x):
    """A kink every 0.025: more than any two differences could agree over."""
    return (20 * x - torch.round(20 * x)).abs() / 20


@pytest.mark.parametrize(("kinks", "evidence"), [(False, "differences"), (True, "symmetry")])
def test_without_float64_the_next_best_evidence_serves(kinks, evidence):
    model, inputs, targets = OnlyFloat32(kinks), torch.randn(512, 8), torch.randint(0, 3, (512,))
    gradients, _ = gradients_of(model, lambda m: F.cross_entropy(m(inputs), targets))
    assert gradients.test.evidence == evidence
    assert gradients.test.error < 1e-2
    assert gradients.method == "autograd"


def test_another_function_in_float64_is_no_evidence():
    inputs = torch.randn(50, 8)

    def loss(m):
        y = m(inputs)
        return (y.tanh() if y.dtype is torch.float64 else y.sigmoid()).square().sum()

    gradients, _ = gradients_of(nn.Linear(8, 3), loss)
    assert gradients.test.evidence == "differences"
    assert gradients.method == "autograd"


def test_casts_constants_and_draws_within_the_closure():
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 3))
    inputs, scale = torch.randn(40, 5), torch.rand(3)

    def loss(m):
        y = m(inputs + 0.1 * torch.randn_like(inputs)).float() * scale.to(torch.float32)
        weights = torch.zeros(40, dtype=torch.float32)
        weights[::2] = torch.rand(20)
        return (weights * (y + torch.ones(3)).square().sum(1).sqrt()).mean()

    gradients, _ = gradients_of(model, loss)
    assert gradients.test.evidence == "float64 differences"
    assert gradients.test.error < 1e-5


def test_under_autocast_the_error_of_half_precision_is_told():
    p = problem("mlp")
    p.model.eval()

    def loss(m):
        with torch.autocast("cpu", torch.bfloat16):
            return p.loss(m)

    gradients, _ = gradients_of(p.model, loss)
    assert gradients.test.evidence == "float64 differences"
    assert gradients.test.error > 1e-4
    assert (gradients.method == "differences") == (gradients.test.error > 0.01)


def test_unequal_microbatches_in_float64():
    p = problem("batchnorm")
    p.model.eval()
    probe = [(p.inputs[a:b], p.targets[a:b]) for a, b in [(0, 4), (4, 17), (17, 40)]]
    gradients, _ = gradients_of(p.model, p.loss, probe=probe)
    assert gradients.test.evidence == "float64 differences"
    assert gradients.test.error < 1e-4


def test_the_test_runs_once_and_only_when_asked(monkeypatch):
    p = problem("mlp")
    view, calls = ParameterView.of(p.model), []
    monkeypatch.setattr(
        curvature_gradients,
        "compare",
        lambda *given, original=curvature_gradients.compare: calls.append(1) or original(*given),
    )
    vectors = unit(view.n, dtype=torch.float32)[None]
    for check, expected in [(False, 0), (True, 1)]:
        gradients = CurvatureGradients(view, ProbeLoss(p.model, p.loss), check=check)
        first = gradients(vectors)
        torch.testing.assert_close(gradients(vectors), first, rtol=0, atol=0)
        assert len(calls) == expected
        assert (gradients.test is not None) == check


@pytest.mark.parametrize("power", [1, 2])
def test_a_loss_of_constant_curvature_passes(power):
    inputs = torch.randn(20, 5)
    gradients, found = gradients_of(nn.Linear(5, 2), lambda m: (m(inputs) ** power).mean())
    assert not found.any()
    assert gradients.test.error == 0.0


def test_nothing_to_differentiate_is_an_error():
    view = ParameterView.of(Vector(1.0))
    with pytest.raises(ConfigError, match="closure"):
        CurvatureGradients(view)(torch.ones(1, 1).double())
