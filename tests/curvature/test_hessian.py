import pytest
import torch
import torch.nn.functional as F
from pyhessian import hessian as pyhessian
from torch import nn

import lipprof
from lipprof.curvature import HessianOperator, ParameterView, gradient_graph, hutchinson_sample
from lipprof.demo.gpt import CharGPT
from lipprof.errors import ConfigError, NonfiniteError, NotDifferentiableError, ShapeError
from lipprof.linalg import materialise
from tests.curvature.oracles import finite_difference_hessian
from tests.linalg import spectra
from tests.models import KINDS, problem


class Quadratic(nn.Module):
    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix
        self.theta = nn.Parameter(torch.randn(len(matrix), dtype=matrix.dtype))

    def forward(self):
        return self.theta @ self.matrix @ self.theta / 2


def test_quadratic_with_a_prescribed_spectrum():
    values = spectra.loss_surface(150)
    model = Quadratic(spectra.with_spectrum(values))
    pairs = lipprof.spectrum(model, lambda m: m(), top=4, bottom=2, tol=1e-8)
    rising = values.sort().values
    expected = torch.cat([rising.flip(0)[:4], rising[:2].flip(0)])
    torch.testing.assert_close(pairs.values, expected, rtol=1e-6, atol=0)
    true = pairs.vectors @ model.matrix - pairs.values[:, None] * pairs.vectors
    torch.testing.assert_close(pairs.residuals, true.norm(dim=1), rtol=1e-3, atol=1e-13)


def test_linear_regression_in_closed_form():
    inputs = torch.randn(30, 6, dtype=torch.float64)
    model = nn.Linear(6, 1, bias=False).double()
    targets = torch.randn(30, 1, dtype=torch.float64)
    pairs = lipprof.spectrum(model, lambda m: F.mse_loss(m(inputs), targets), top=3, bottom=3)
    expected = torch.linalg.eigvalsh(2 * inputs.T @ inputs / 30).flip(0)
    torch.testing.assert_close(pairs.values, expected, rtol=1e-6, atol=0)


def test_logistic_regression_in_closed_form():
    inputs = torch.randn(40, 5, dtype=torch.float64)
    labels = torch.randint(0, 2, (40,)).double()
    model = nn.Linear(5, 1, bias=False).double()

    def loss(m):
        return F.binary_cross_entropy_with_logits(m(inputs).squeeze(1), labels)

    p = torch.sigmoid(inputs @ model.weight.detach().squeeze(0))
    closed_form = inputs.T @ torch.diag(p * (1 - p)) @ inputs / 40
    pairs = lipprof.spectrum(model, loss, top=5, bottom=0)
    torch.testing.assert_close(
        pairs.values, torch.linalg.eigvalsh(closed_form).flip(0), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_matches_finite_differences_of_gradients(kind):
    p = problem(kind, torch.float64, count=6)
    p.model.eval()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        dense = finite_difference_hessian(lambda: p.loss(p.model), p.model.parameters())
    pairs = lipprof.spectrum(p.model, p.loss, top=5, bottom=5, tol=1e-8)
    rising = torch.linalg.eigvalsh(dense)
    expected = torch.cat([rising.flip(0)[:5], rising[:5].flip(0)])
    torch.testing.assert_close(pairs.values, expected, rtol=1e-6, atol=1e-8 * float(rising[-1]))
    true = (pairs.vectors @ dense - pairs.values[:, None] * pairs.vectors).norm(dim=1)
    torch.testing.assert_close(pairs.residuals, true, rtol=0.1, atol=1e-7 * float(rising[-1]))


def test_float32_residuals_of_a_gpt_equal_an_independent_recomputation():
    """Recomputed in float64 from the float32 vectors, by central differences of gradients."""
    model = CharGPT(11, length=6, layers=2, width=16)
    tokens = torch.randint(0, 11, (20, 7))
    batch = tokens[:, :-1], tokens[:, 1:]
    pairs = lipprof.spectrum(model, lambda m: m.loss(batch), top=3, bottom=3, tol=1e-4)
    exact = model.double()
    theta = torch.nn.utils.parameters_to_vector(exact.parameters()).detach()

    def gradient_at(point):
        torch.nn.utils.vector_to_parameters(point, exact.parameters())
        gradients = torch.autograd.grad(exact.loss(batch), list(exact.parameters()))
        return torch.nn.utils.parameters_to_vector(gradients)

    for value, vector, reported in zip(
        pairs.values, pairs.vectors.double(), pairs.residuals, strict=True
    ):
        step = 1e-4 * vector
        image = (gradient_at(theta + step) - gradient_at(theta - step)) / 2e-4
        residual = float((image - value * vector).norm())
        assert residual == pytest.approx(
            float(reported), rel=0.1, abs=2e-6 * float(pairs.values[0])
        )


@pytest.mark.filterwarnings("ignore:Using backward")  # PyHessian's own way
def test_top_eigenvalue_agrees_with_pyhessian():
    p = problem("mlp")
    pairs = lipprof.spectrum(p.model, p.loss, top=1, bottom=0, tol=1e-4)
    theirs = pyhessian(
        p.model.eval(), nn.CrossEntropyLoss(), data=(p.inputs, p.targets), cuda=False
    )
    values, _ = theirs.eigenvalues(maxIter=500, tol=1e-6, top_n=1)
    assert float(pairs.values[0]) == pytest.approx(values[0], rel=1e-3)


def test_unequal_microbatches_are_weighted_by_size():
    p = problem("mlp", torch.float64)
    probe = [(p.inputs[:30], p.targets[:30]), (p.inputs[30:], p.targets[30:])]
    whole = lipprof.spectrum(p.model, p.loss, top=2, bottom=2, tol=1e-9)
    parts = lipprof.spectrum(p.model, p.loss, probe=probe, top=2, bottom=2, tol=1e-9)
    torch.testing.assert_close(whole.values, parts.values, rtol=1e-9, atol=0)


def test_summed_losses_add_up():
    p = problem("mlp", torch.float64)

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    probe = [(p.inputs[:30], p.targets[:30]), (p.inputs[30:], p.targets[30:])]
    mean = lipprof.spectrum(p.model, p.loss, top=2, bottom=0, tol=1e-9)
    summed = lipprof.spectrum(
        p.model, loss, probe=probe, reduction="sum", top=2, bottom=0, tol=1e-9
    )
    torch.testing.assert_close(40 * mean.values, summed.values, rtol=1e-9, atol=0)


def test_frozen_and_unused_parameters():
    model = nn.ModuleDict({"used": nn.Linear(4, 2), "unused": nn.Linear(3, 3)}).double()
    model["used"].bias.requires_grad_(False)
    inputs = torch.randn(10, 4, dtype=torch.float64)
    view = ParameterView.of(model)
    assert view.names == ("used.weight", "unused.weight", "unused.bias")
    loss = model["used"](inputs).square().mean()
    matrix = materialise(HessianOperator(view, [gradient_graph(loss, view)]))
    assert matrix[8:].abs().max() == 0
    expected = torch.block_diag(*[inputs.T @ inputs / 10] * 2)
    torch.testing.assert_close(matrix[:8, :8], expected)


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert ParameterView.of(model).names == ("0.weight", "0.bias", "1.bias")


def test_a_loss_linear_in_the_parameters_has_no_curvature():
    model = nn.Linear(3, 1)
    pairs = lipprof.spectrum(model, lambda m: m(torch.ones(2, 3)).sum(), top=1, bottom=1)
    assert pairs.values.tolist() == [0.0, 0.0]
    assert pairs.converged.all()


def test_flat_order_round_trip():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    view = ParameterView.of(model)
    for part, parameter in zip(view.split(view.snapshot()), model.parameters(), strict=True):
        assert torch.equal(part, parameter)
    with pytest.raises(ShapeError, match="n=11"):
        view.split(torch.zeros(3))


def test_wrapper_prefixes_are_stripped():
    view = ParameterView([("_orig_mod.block._orig_mod.weight", nn.Parameter(torch.zeros(2)))])
    assert view.names == ("block.weight",)


def test_hutchinson_sample_leaves_the_loss_usable():
    matrix = torch.diag(torch.tensor([1.0, -2.0, 3.0]).double())
    model = Quadratic(matrix)
    loss = model()
    (sample,) = hutchinson_sample(loss, [model.theta], torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample, matrix.diagonal())
    loss.backward()
    torch.testing.assert_close(model.theta.grad, matrix @ model.theta.detach())


class NoSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * 2


@pytest.mark.parametrize(
    ("loss", "error", "match"),
    [
        (lambda m: m(torch.ones(2, 3)), NotDifferentiableError, "one element"),
        (lambda m: 3.0, NotDifferentiableError, "one element, got float"),
        (lambda m: torch.zeros(()), NotDifferentiableError, "does not depend"),
        (lambda m: (m(torch.ones(2, 3)) * torch.nan).sum(), NonfiniteError, "nan"),
        (
            lambda m: torch.cdist(m(torch.ones(2, 3)), torch.zeros(2, 4)).sum(),
            NotDifferentiableError,
            "no second derivative",
        ),
        (
            lambda m: NoSecondDerivative.apply(m(torch.ones(2, 3))).square().sum(),
            NotDifferentiableError,
            "second derivative",
        ),
    ],
)
def test_what_has_no_curvature_is_named(loss, error, match):
    with pytest.raises(error, match=match):
        lipprof.spectrum(nn.Linear(3, 4), loss, top=1, bottom=1, engine="retained")


def test_models_that_cannot_be_profiled_are_named():
    with pytest.raises(ConfigError, match="requires_grad"):
        lipprof.spectrum(nn.ReLU(), lambda m: 0.0)
    with pytest.raises(ConfigError, match="complex64"):
        lipprof.spectrum(nn.Linear(2, 2, dtype=torch.complex64), lambda m: 0.0)
    with pytest.raises(ConfigError, match="several devices"):
        ParameterView([("a", torch.zeros(1)), ("b", torch.zeros(1, device="meta"))])
    with pytest.raises(ConfigError, match="n=4"):
        lipprof.spectrum(nn.Linear(4, 1, bias=False), lambda m: m(torch.ones(1, 4)).sum())
