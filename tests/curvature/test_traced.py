"""Traced Hessian-vector products against closed forms and dense Hessians of torch.func."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lipprof.curvature import ParameterView, twice_differentiable, undisturbed
from lipprof.curvature.hessian.traced import NotTraceableError, TracedHessian
from lipprof.curvature.loss.functional import FunctionalLoss, Microbatch
from lipprof.demo.gpt import CharGPT
from lipprof.linalg import materialise
from tests.curvature.oracles import finite_difference_hessian
from tests.models import problem

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # of forward-mode formulas

WHOLE = [Microbatch()]


def traced(model, loss, **options):
    return TracedHessian(FunctionalLoss(model, loss, ParameterView.of(model)), **options)


def traced_matrix(model, loss, microbatches=WHOLE):
    with undisturbed(model), twice_differentiable(model):
        return materialise(traced(model, loss).operator(microbatches))


def expected_products(model, loss, vectors, *arguments):
    """Rows H v by torch.func, forward over reverse mode."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in parameters.values()]

    def flat_loss(flat):
        parts = zip(flat.split(sizes), parameters.items(), strict=True)
        tensors = {name: part.view(p.shape) for part, (name, p) in parts}
        with torch.nn.utils.stateless._reparametrize_module(model, tensors, tie_weights=True):
            return loss(model, *arguments)

    flat = torch.cat([p.flatten() for p in parameters.values()])
    gradient = torch.func.grad(flat_loss)
    with undisturbed(model), twice_differentiable(model):
        return torch.func.vmap(lambda v: torch.func.jvp(gradient, (flat,), (v,))[1])(vectors)


def dense_hessian(model, loss, *arguments):
    n = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return expected_products(model, loss, torch.eye(n, dtype=torch.float64), *arguments)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(3, 4, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


def pooled_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 3, 2),
        nn.BatchNorm2d(3),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(12, 2),
    )


def gpt():
    return CharGPT(5, length=4, layers=1, width=4, heads=2)


class InPlace(nn.Module):
    """Writes into slices of its own activations."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        hidden = F.elu(self.first(x), inplace=True)
        rolled = torch.zeros_like(hidden)
        rolled[:, 1:] = hidden[:, :-1] * hidden[:, 1:]
        rolled.mul_(hidden).clamp_(max=0.9)
        return self.second(rolled).sigmoid_()


class Transposed(nn.Module):
    """Adds a product to a view of itself."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        product = self.weight @ x @ self.weight
        return product + product.T


def squared(model, inputs):
    return model(inputs).square().mean()


def tokens(model, inputs):
    return model.loss((inputs[:, :-1], inputs[:, 1:]))


NETS = {
    "pooled_cnn": (pooled_cnn, lambda: torch.randn(5, 1, 6, 6).double(), squared),
    "transposed": (Transposed, lambda: torch.randn(3, 3).double(), squared),
    "in_place": (InPlace, lambda: torch.randn(6, 3).double(), squared),
    "gru": (Recurrent, lambda: torch.randn(4, 5, 3).double(), squared),
    "gpt": (gpt, lambda: torch.randint(0, 5, (6, 5)), tokens),
}


def test_logistic_regression_in_closed_form():
    inputs = torch.randn(40, 5, dtype=torch.float64)
    labels = torch.randint(0, 2, (40,)).double()
    model = nn.Linear(5, 1, bias=False).double()

    def loss(m):
        return F.binary_cross_entropy_with_logits(m(inputs).squeeze(1), labels)

    p = torch.sigmoid(inputs @ model.weight.detach().squeeze(0))
    with undisturbed(model), twice_differentiable(model):
        operator = traced(model, loss).operator(WHOLE)
    torch.testing.assert_close(
        materialise(operator), inputs.T @ torch.diag(p * (1 - p)) @ inputs / 40
    )
    torch.testing.assert_close(operator.gradient(), inputs.T @ (p - labels) / 40)
    expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    assert operator.loss == pytest.approx(float(expected))


@pytest.mark.parametrize("name", NETS)
def test_equals_the_dense_hessian(name):
    build, inputs, loss = NETS[name]
    model, batch = build().double().eval(), inputs()
    matrix = traced_matrix(model, loss, [Microbatch((batch,))])
    torch.testing.assert_close(matrix, dense_hessian(model, loss, batch), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.BatchNorm1d(4)], ids=repr)
def test_equals_finite_differences_in_train_mode(norm):
    """Of gradients: torch.func has no GroupNorm twice and no running statistics."""
    model = nn.Sequential(nn.Conv1d(2, 4, 2), norm, nn.Tanh()).double()
    inputs = torch.randn(3, 2, 5).double()
    buffers = copy.deepcopy(list(model.buffers()))
    matrix = traced_matrix(model, squared, [Microbatch((inputs,))])
    assert all(map(torch.equal, buffers, model.buffers()))
    expected = finite_difference_hessian(lambda: squared(model, inputs), model.parameters())
    torch.testing.assert_close(matrix, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["batchnorm", "attention"])
def test_follows_parameters_and_buffers_from_one_trace(kind):
    p = problem(kind, torch.float64, count=12)
    p.model.eval()
    hessian = traced(p.model, p.loss)
    optimizer = torch.optim.SGD(p.model.parameters(), lr=0.3)
    for _ in range(3):
        p.model.train()
        p.loss(p.model).backward()  # changes the running statistics, too
        optimizer.step()
        optimizer.zero_grad()
        p.model.eval()
        with undisturbed(p.model), twice_differentiable(p.model):
            operator = hessian.operator(WHOLE)
        vectors = torch.randn(2, operator.n, dtype=torch.float64)
        products = torch.stack([operator.matvec(v) for v in vectors])
        expected = expected_products(p.model, p.loss, vectors)
        torch.testing.assert_close(products, expected, rtol=1e-9, atol=1e-11)
    assert len(hessian._traces) == 1


def test_unequal_microbatches_have_their_own_traces():
    p = problem("mlp", torch.float64, count=9)
    p.model.eval()
    parts = [slice(0, 4), slice(4, 8), slice(8, 9)]
    microbatches = [
        Microbatch(((p.inputs[part], p.targets[part]),), weight=len(p.inputs[part]) / 9)
        for part in parts
    ]
    hessian = traced(p.model, p.loss)
    operator = hessian.operator(microbatches)
    assert len(hessian._traces) == 2
    torch.testing.assert_close(materialise(operator), dense_hessian(p.model, p.loss))
    assert operator.loss == pytest.approx(float(p.loss(p.model).detach()))


def test_frozen_and_unused_parameters():
    model = nn.ModuleDict({"used": nn.Linear(4, 2), "unused": nn.Linear(3, 3)}).double()
    model["used"].bias.requires_grad_(False)
    inputs = torch.randn(10, 4, dtype=torch.float64)
    hessian = traced(model, lambda m: m["used"](inputs).square().mean())
    matrix = materialise(hessian.operator(WHOLE))
    assert matrix[8:].abs().max() == 0
    torch.testing.assert_close(matrix[:8, :8], torch.block_diag(*[inputs.T @ inputs / 10] * 2))
    before = hessian.operator(WHOLE).gradient()
    model["used"].bias.data = model["used"].bias + 1  # frozen, yet followed
    shifted = hessian.operator(WHOLE).gradient()[:8] - before[:8]
    torch.testing.assert_close(shifted, inputs.mean(0).repeat(2))


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    inputs = torch.randn(5, 3, dtype=torch.float64)
    matrix = traced_matrix(model, squared, [Microbatch((inputs,))])
    torch.testing.assert_close(matrix, dense_hessian(model, squared, inputs))


def test_a_loss_linear_in_the_parameters_has_no_curvature():
    model = nn.Linear(3, 1)
    operator = traced(model, lambda m: m(torch.ones(2, 3)).sum()).operator(WHOLE)
    assert torch.equal(operator.matvec(torch.ones(4)), torch.zeros(4))
    assert torch.equal(operator.gradient(), torch.full((4,), 2.0))


def test_a_quadratic_returns_its_vector_and_leaves_it_alone():
    model = nn.Linear(3, 1, bias=False)
    operator = traced(model, lambda m: m.weight.square().sum() / 2).operator(WHOLE)
    vector = torch.arange(3.0)
    assert torch.equal(operator.matvec(vector), torch.arange(3.0))
    assert torch.equal(vector, torch.arange(3.0))


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_dropout_draws_the_masks_of_a_plain_evaluation(kind):
    p = problem(kind, torch.float64, count=8)
    hessian = traced(p.model, p.loss, seed=5)
    microbatches = [Microbatch((p.batch(i, 4),)) for i in range(2)]
    with undisturbed(p.model, training=True), twice_differentiable(p.model):
        operator = hessian.operator(microbatches)
        torch.manual_seed(5)
        loss = sum(p.loss(p.model, m.arguments[0]) for m in microbatches)
        gradients = torch.autograd.grad(loss, list(p.model.parameters()), create_graph=True)
        vector = torch.randn(operator.n, dtype=torch.float64)
        products = torch.autograd.grad(
            gradients, list(p.model.parameters()), operator.view.split(vector)
        )
    assert operator.loss == pytest.approx(float(loss.detach()))
    torch.testing.assert_close(operator.matvec(vector), operator.view.flatten(products))


def test_captured_tensors_are_read_anew():
    inputs = torch.randn(6, 3, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    hessian = traced(model, lambda m: m(inputs).square().mean())
    hessian.operator(WHOLE)
    inputs.copy_(torch.randn(6, 3))
    matrix = materialise(hessian.operator(WHOLE))
    torch.testing.assert_close(matrix, 2 * inputs.T @ inputs / 6)


def test_no_grad_makes_constants():
    model = nn.Linear(3, 1, bias=False).double()
    inputs = torch.randn(6, 3, dtype=torch.float64)

    def loss(m):
        with torch.no_grad():
            target = m(inputs).sin()
        return (m(inputs) * target).square().mean()

    target = model(inputs).detach().sin().squeeze(1)
    expected = 2 * inputs.T @ torch.diag(target**2) @ inputs / 6
    torch.testing.assert_close(traced_matrix(model, loss), expected)


def test_decisions_of_python_that_change_are_caught():
    model = nn.Linear(3, 1, bias=False)
    inputs = torch.randn(6, 3)
    calls = []

    def loss(m):
        calls.append(None)
        return m(inputs).square().mean() * (1 if len(calls) < 4 else 2)

    hessian = traced(model, loss)
    hessian.operator(WHOLE)
    hessian.operator(WHOLE)
    with pytest.raises(NotTraceableError, match="gives another loss"):
        hessian.operator(WHOLE)


def test_a_loss_out_of_reach_of_the_trace_is_caught():
    model = nn.Linear(3, 1, bias=False)
    weight = model.weight
    with pytest.raises(NotTraceableError, match="another gradient"):
        traced(model, lambda m: weight.square().sum()).operator(WHOLE)


def test_values_read_by_python_are_named():
    model = nn.Linear(3, 1)
    with pytest.raises(NotTraceableError, match="cannot be traced"):
        traced(model, lambda m: m(torch.ones(2, 3)).sum() ** 2 * m.bias.item()).operator([
            Microbatch()
        ])
