import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lipprof.curvature import ParameterView, ProbeLoss, retained_hessian, undisturbed
from lipprof.curvature.hessian.differences import DifferenceOperator
from lipprof.demo.gpt import CharGPT
from lipprof.errors import NondeterministicCurvatureError, NonfiniteError, NotDifferentiableError
from lipprof.linalg import eigenpairs, materialise
from tests.curvature.test_guards import assert_same, states
from tests.curvature.test_hessian import NoSecondDerivative, Quadratic
from tests.linalg import spectra
from tests.models import KINDS, problem


def differences(model, loss, probe=None, **keywords):
    return DifferenceOperator(ParameterView.of(model), ProbeLoss(model, loss, probe), **keywords)


def exact(model, loss, probe=None):
    with sdpa_kernel(SDPBackend.MATH):
        return retained_hessian(ProbeLoss(model, loss, probe), ParameterView.of(model))


def relative_difference(x, y):
    return float((x - y).norm() / y.norm())


def trained_gpt(iterations=30):
    model = CharGPT(17, length=16, layers=2, width=32)
    tokens = torch.randint(0, 17, (8, 17))
    batch = tokens[:, :-1], tokens[:, 1:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(iterations):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    return model, lambda m: m.loss(batch)


def test_quadratic_in_closed_form():
    matrix = spectra.with_spectrum(spectra.loss_surface(150))
    op = differences(Quadratic(matrix), lambda m: m())
    x = torch.randn(150, dtype=torch.float64)
    assert relative_difference(op.matvec(x), matrix @ x) < 1e-9
    torch.testing.assert_close(op.gradient(), matrix @ op.view.snapshot())


def test_logistic_regression_in_closed_form():
    inputs = torch.randn(40, 5, dtype=torch.float64)
    labels = torch.randint(0, 2, (40,)).double()
    model = nn.Linear(5, 1, bias=False).double()
    p = torch.sigmoid(inputs @ model.weight.detach().squeeze(0))
    closed_form = inputs.T @ torch.diag(p * (1 - p)) @ inputs / 40
    op = differences(
        model, lambda m: F.binary_cross_entropy_with_logits(m(inputs).squeeze(1), labels)
    )
    torch.testing.assert_close(materialise(op), closed_form, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-4), (torch.float64, 1e-8)])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_exact_products_and_knows_its_error(kind, dtype, limit):
    p = problem(kind, dtype)
    p.model.eval()
    op = differences(p.model, p.loss)
    truth = exact(p.model, p.loss)
    assert op.loss == pytest.approx(truth.loss, rel=1e-6)
    assert op.step.relative_error < limit
    x = truth.matvec(torch.randn(op.n, dtype=dtype))  # amplified: what the error is relative to
    assert relative_difference(op.matvec(x), truth.matvec(x)) < 2 * op.step.relative_error


def test_spectrum_of_a_float32_gpt_on_its_own_attention_kernel():
    model, loss = trained_gpt()
    op = differences(model, loss)
    assert op.step.relative_error < 1e-3
    ours = eigenpairs(op, top=3, bottom=1, max_matvecs=40)
    truth = eigenpairs(exact(model, loss), top=3, bottom=1, max_matvecs=40)
    scale = float(truth.values[0])
    torch.testing.assert_close(ours.values, truth.values, rtol=0, atol=1e-3 * scale)


def test_the_same_curvature_whatever_the_unit_of_the_loss():
    p = problem("mlp", torch.float64)
    p.model.eval()
    one, million = (differences(p.model, lambda m, c=c: c * p.loss(m)) for c in (1.0, 1e6))
    assert million.step.epsilon == pytest.approx(one.step.epsilon, rel=0.01)


def test_first_order_kernels_are_no_obstacle():
    """Where exact products fail: cdist, EmbeddingBag, sparse lookups, once_differentiable."""
    tables = nn.ModuleDict({
        "bag": nn.EmbeddingBag(6, 3),
        "lookup": nn.Embedding(6, 3, sparse=True),
        "mix": nn.Linear(3, 3),
    }).double()
    codes = torch.randint(0, 6, (5, 4))
    centres = torch.randn(4, 3, dtype=torch.float64)

    def loss(m, plain=False):
        bag = m["lookup"].weight.new_zeros(()) + (
            m["bag"].weight[codes].mean(1) if plain else m["bag"](codes)
        )
        found = m["lookup"].weight[codes[:, 0]] if plain else m["lookup"](codes[:, 0])
        x = m["mix"](bag + found)
        x = 2 * x if plain else NoSecondDerivative.apply(x)
        far = (x[:, None] - centres).square().sum(-1).sqrt() if plain else torch.cdist(x, centres)
        return far.square().mean() + far.mean()

    op = differences(tables, loss)
    truth = exact(tables, lambda m: loss(m, plain=True))
    x = torch.randn(op.n, dtype=torch.float64)
    assert relative_difference(op.matvec(x), truth.matvec(x)) < 1e-7


def test_microbatches_are_weighted_by_size():
    p = problem("mlp", torch.float64)
    probe = [(p.inputs[:30], p.targets[:30]), (p.inputs[30:], p.targets[30:])]
    p.model.eval()
    whole, parts = differences(p.model, p.loss), differences(p.model, p.loss, probe)
    x = torch.randn(whole.n, dtype=torch.float64)
    assert whole.loss == pytest.approx(parts.loss)
    torch.testing.assert_close(whole.matvec(x), parts.matvec(x), rtol=1e-6, atol=1e-9)


def test_both_gradients_see_the_same_dropout_masks():
    p = problem("mlp", torch.float64)
    with undisturbed(p.model, training=True):
        op, truth = differences(p.model, p.loss), exact(p.model, p.loss)
    x = torch.randn(op.n, dtype=torch.float64)
    assert relative_difference(op.matvec(x), truth.matvec(x)) < 1e-7


def test_spectral_norm_in_train_mode_starts_each_gradient_from_the_same_vectors():
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)).double()
    inputs = torch.randn(10, 4, dtype=torch.float64)
    op = differences(model, lambda m: m(inputs).square().mean())
    x = torch.randn(op.n, dtype=torch.float64)
    assert torch.equal(op.matvec(x), op.matvec(x))


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_no_trace(kind):
    p = problem(kind)
    p.loss(p.model).backward()
    before = states(p.model)
    versions = [q._version for q in p.model.parameters()]
    op = differences(p.model, p.loss)
    op.matvec(op.gradient())
    assert_same(before, states(p.model))
    assert versions == [q._version for q in p.model.parameters()]


def test_a_live_graph_survives():
    p = problem("mlp")
    loss = p.loss(p.model)
    expected = torch.autograd.grad(loss, list(p.model.parameters()), retain_graph=True)
    op = differences(p.model, p.loss)
    op.matvec(torch.randn(op.n))
    again = torch.autograd.grad(loss, list(p.model.parameters()))
    assert all(torch.equal(x, y) for x, y in zip(expected, again, strict=True))


def test_parameters_are_bitwise_restored_when_the_loss_fails():
    model = nn.Linear(5, 5)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([1e-42, -0.0, 1e30, 3.0, 1 / 3]))
    before = copy.deepcopy(model.state_dict())
    calls = []

    def loss(m):
        calls.append(m.weight.detach().clone())
        if len(calls) == 3:
            raise KeyboardInterrupt
        return m(torch.ones(2, 5)).tanh().square().mean()

    with pytest.raises(KeyboardInterrupt):
        differences(model, loss)
    assert not torch.equal(calls[2], before["weight"])
    for name, value in model.state_dict().items():
        assert value.view(torch.int32).equal(before[name].view(torch.int32)), name


def test_theta_stays_that_of_construction():
    """Whoever moves the parameters in between finds them where they were put."""
    p = problem("mlp", torch.float64)
    p.model.eval()
    op = differences(p.model, p.loss)
    x = torch.randn(op.n, dtype=torch.float64)
    product = op.matvec(x)
    with torch.no_grad():
        p.model[0].weight.add_(1)
    moved = p.model[0].weight.detach().clone()
    assert torch.equal(op.matvec(x), product)
    assert torch.equal(p.model[0].weight, moved)


def test_one_autocast_region_gives_zero_without_us_and_a_product_with_us():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    inputs = torch.randn(20, 6)

    def loss(m):
        return m(inputs).float().square().mean()

    theta = model[0].weight.detach().clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradients = []
        for sign in (1, -1):
            model[0].weight.data.copy_(theta + sign * 0.1)
            gradients.append(torch.autograd.grad(loss(model), model[0].weight)[0])
        model[0].weight.data.copy_(theta)
        assert torch.equal(*gradients)  # the trap
        torch.clear_autocast_cache()

        at_theta = loss(model)
        op = differences(model, loss)
        assert torch.equal(loss(model), at_theta)  # nothing stale is left behind
        product = op.matvec(op.gradient())
    truth = exact(model, loss)
    assert relative_difference(product, truth.matvec(op.gradient())) < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_kinks_are_refused_and_named(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 144, 10)
    )
    images, targets = torch.randn(64, 1, 28, 28), torch.randint(0, 10, (64,))
    with pytest.raises(NotDifferentiableError, match="kinks of MaxPool2DWithIndices, Relu"):
        differences(model, lambda m: F.cross_entropy(m(images), targets))


def test_a_gradient_that_changes_by_itself_is_not_taken_for_a_kink():
    p = problem("mlp")
    generator = torch.Generator().manual_seed(0)

    def loss(m):
        chosen = torch.randint(0, 40, (8,), generator=generator)
        return F.cross_entropy(m(p.inputs[chosen]), p.targets[chosen])

    with pytest.raises(NondeterministicCurvatureError, match="draws a new batch"):
        differences(p.model.eval(), loss)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_accepted_in_spite_of_kinks_is_right(seed):
    """A few kinks may lie farther away than the step, in float64 above all."""
    torch.manual_seed(seed)
    inputs, targets = torch.randn(16, 20), torch.randint(0, 3, (16,))
    model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def loss(m):
        return F.cross_entropy(m(inputs.to(m[0].weight)), targets)

    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        try:
            op = differences(model, loss)
        except NotDifferentiableError:
            assert dtype is torch.float32
            continue
        truth = exact(model, loss)
        for _ in range(5):
            x = truth.matvec(torch.randn(op.n, dtype=dtype))
            assert relative_difference(op.matvec(x), truth.matvec(x)) < 3 * op.step.relative_error


def test_bfloat16_parameters_are_measured_within_the_stated_error():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).bfloat16()
    inputs = torch.randn(20, 6, dtype=torch.bfloat16)

    def loss(m):
        return m(inputs.to(m[0].weight.dtype)).float().square().mean()

    op = differences(model, loss)
    x = op.gradient()
    truth = exact(copy.deepcopy(model).double(), loss).matvec(x.double())
    assert relative_difference(op.matvec(x), truth) < op.step.relative_error < 0.03


def test_bfloat16_parameters_are_refused_where_that_is_too_coarse():
    model, loss = trained_gpt(iterations=0)
    model.bfloat16()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NotDifferentiableError, match="too low a precision"):
        differences(model, loss)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_known_step_is_checked_and_replaced_when_it_has_become_bad():
    p = problem("mlp", torch.float64)
    p.model.eval()
    first = differences(p.model, p.loss)
    second = differences(p.model, p.loss, step=first.step)
    assert second.step.epsilon == first.step.epsilon
    assert second.num_gradients < first.num_gradients
    sharp = differences(p.model, lambda m: torch.cos(1e4 * p.loss(m)), step=first.step)
    assert sharp.step.epsilon < first.step.epsilon / 50


def test_a_linear_loss_has_no_curvature():
    model = nn.Linear(3, 1)
    op = differences(model, lambda m: m(torch.ones(2, 3)).sum())
    assert op.matvec(torch.randn(4)).tolist() == [0.0] * 4
    assert op.step.relative_error == 0
    assert op.matvec(torch.zeros(4)).tolist() == [0.0] * 4


def test_a_nonfinite_loss_is_refused():
    with pytest.raises(NonfiniteError, match="loss is nan"):
        differences(nn.Linear(3, 1), lambda m: m(torch.ones(2, 3)).sum() * torch.nan)
