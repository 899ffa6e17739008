"""Against dense Jᵀ H J from torch.func, and the Hessian where the two are the same matrix."""

import weakref
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lipprof.curvature import ParameterView
from lipprof.curvature.ggn import gauss_newton
from lipprof.curvature.kernels import twice_differentiable
from lipprof.curvature.loss.losses import ProbeLoss
from lipprof.errors import CurvatureError, NotDifferentiableError
from lipprof.linalg import materialise
from tests.curvature.oracles import finite_difference_hessian
from tests.models import KINDS, problem


def operator_of(model, loss):
    with twice_differentiable(model):
        return gauss_newton(model, ProbeLoss(model, loss).terms(), ParameterView.of(model))


def dense(model, network, head):
    """Jᵀ H J of ``head(network(model))``, with no code in common with the operator."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return network(self.model)

    def outputs(values):
        return functional_call(Network(), {f"model.{k}": v for k, v in values.items()}, ())

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        z = outputs(parameters).detach()
        jacobian = jacrev(outputs)(parameters)
    flat = torch.cat([part.reshape(z.numel(), -1) for part in jacobian.values()], 1)
    curvature = jacrev(jacrev(lambda z_flat: head(z_flat.view_as(z))))(z.flatten())
    return flat.T @ curvature @ flat


@pytest.mark.parametrize("kind", KINDS)
def test_cross_entropy_matches_dense(kind):
    p = problem(kind, torch.float64, count=6)
    p.model.eval()

    def head(z):
        return F.cross_entropy(z.flatten(0, -2), p.targets.flatten())

    g = materialise(operator_of(p.model, p.loss))
    torch.testing.assert_close(g, dense(p.model, lambda m: m(p.inputs), head))
    assert torch.linalg.eigvalsh(g)[0] > -1e-12


IMAGE_TARGETS = torch.randint(0, 4, (3, 2, 2), generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.tensor([0.5, 2.0, 0.1, 1.0], dtype=torch.float64)
SOFT = torch.rand(3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IGNORING = IMAGE_TARGETS.masked_fill(IMAGE_TARGETS == 1, -100)
MASK = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def multiplied_in_place(z):
    loss = F.cross_entropy(z, IMAGE_TARGETS, reduction="none")
    loss *= MASK
    return loss.sum()


def logged(z):
    with torch.no_grad():
        F.cross_entropy(z, IMAGE_TARGETS, label_smoothing=0.1)
    return F.cross_entropy(z, IMAGE_TARGETS)


HEADS = {
    "mean": lambda z: F.cross_entropy(z, IMAGE_TARGETS),
    "sum": lambda z: F.cross_entropy(z, IMAGE_TARGETS, reduction="sum"),
    "ignored": lambda z: F.cross_entropy(z, IGNORING),
    "ignored index": lambda z: F.cross_entropy(z, IMAGE_TARGETS, ignore_index=2),
    "weights": lambda z: F.cross_entropy(z, IGNORING, WEIGHTS),
    "smoothed": lambda z: F.cross_entropy(z, IGNORING, label_smoothing=0.3),
    "smoothed weights": lambda z: F.cross_entropy(z, IGNORING, WEIGHTS, label_smoothing=0.3),
    "soft": lambda z: F.cross_entropy(z, SOFT, WEIGHTS, label_smoothing=0.3),
    "masked": lambda z: (
        (F.cross_entropy(z, IGNORING, reduction="none") * MASK).sum() / MASK.sum() / 4
    ),
    "in place": multiplied_in_place,
    "scaled logits": lambda z: 2 * F.cross_entropy(3 * z + 1, IMAGE_TARGETS),
    "two": lambda z: (
        F.cross_entropy(z[:2], IMAGE_TARGETS[:2]) + F.cross_entropy(2 * z[1:], SOFT[1:])
    ),
    "nll": lambda z: nn.NLLLoss()(F.log_softmax(z, dim=-3), IGNORING),
    "also logged": logged,
    "one row": lambda z: F.cross_entropy(z[0, :, 0, 0], IMAGE_TARGETS[0, 0, 0]),
}
OTHER_HEADS = {
    "perplexity": lambda z: F.cross_entropy(z, IMAGE_TARGETS).exp(),
    "with a penalty": lambda z: F.cross_entropy(z, IMAGE_TARGETS) + 0.1 * z.pow(4).mean(),
    "squares": lambda z: F.mse_loss(z, SOFT),
    "nll over another dimension": lambda z: F.nll_loss(F.log_softmax(z, 0), IMAGE_TARGETS),
    "own targets": lambda z: F.cross_entropy(z[:2], z[1:].softmax(1)),
    "binary": lambda z: F.binary_cross_entropy_with_logits(z, SOFT),
}


@pytest.fixture
def image_model():
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 4, 1)).double()


@pytest.mark.parametrize("name", [*HEADS, *OTHER_HEADS])
def test_every_form_of_a_loss_head_matches_dense(name, image_model):
    images = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    head = {**HEADS, **OTHER_HEADS}[name]
    g = operator_of(image_model, lambda m: head(m(images)))
    torch.testing.assert_close(
        materialise(g), dense(image_model, lambda m: m(images), head), rtol=1e-10, atol=1e-12
    )
    closed_form = type(g.graphs[0].head).__name__ == "CrossEntropyHead"
    assert closed_form == (name in HEADS)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_size_of_chunks_does_not_matter(rows, monkeypatch):
    p = problem("mlp", torch.float64)
    p.model.eval()
    whole = materialise(operator_of(p.model, p.loss))
    monkeypatch.setattr("lipprof.curvature.cross_entropy.CHUNK", 3 * rows)
    torch.testing.assert_close(materialise(operator_of(p.model, p.loss)), whole)


def test_it_is_fishers_matrix():
    """The covariance of ∇log p(y) over labels that the model itself draws, class by class."""
    p = problem("mlp", torch.float64)
    p.model.eval()
    parameters = dict(p.model.named_parameters())

    def log_probabilities(values):
        return F.log_softmax(functional_call(p.model, values, (p.inputs,)), -1)

    log_p = log_probabilities(parameters).detach()
    scores = jacrev(log_probabilities)(parameters)
    flat = torch.cat([part.detach().flatten(2) for part in scores.values()], 2)
    fisher = torch.einsum("bc,bci,bcj->ij", log_p.exp(), flat, flat) / len(p.inputs)
    torch.testing.assert_close(materialise(operator_of(p.model, p.loss)), fisher)


@pytest.mark.parametrize("loss", [F.cross_entropy, F.mse_loss, F.huber_loss])
def test_it_is_the_hessian_of_a_linear_model(loss):
    inputs, weight = torch.randn(9, 4).double(), torch.rand(9, 3).double()
    model = nn.Linear(4, 3).double()
    dense_hessian = finite_difference_hessian(
        lambda: loss(model(inputs), weight), model.parameters()
    )
    g = materialise(operator_of(model, lambda m: loss(m(inputs), weight)))
    torch.testing.assert_close(g, dense_hessian, rtol=1e-7, atol=1e-8)


def test_microbatches_of_a_probe_are_weighted_by_size():
    p = problem("attention", torch.float64)
    p.model.eval()
    whole = operator_of(p.model, p.loss)
    probe = [(p.inputs[part], p.targets[part]) for part in (slice(0, 30), slice(30, 40))]
    terms = ProbeLoss(p.model, p.loss, probe).terms()
    with twice_differentiable(p.model):
        in_parts = gauss_newton(p.model, terms, whole.view)
    vector = torch.randn(whole.n, dtype=torch.float64)
    torch.testing.assert_close(in_parts.matvec(vector), whole.matvec(vector))
    assert in_parts.loss == pytest.approx(whole.loss)


@dataclass
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor


class WithOwnLoss(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        self.head = head

    def forward(self, inputs, targets=None):
        logits = self.layers(inputs)
        return Output(None if targets is None else self.head(logits, targets), logits)


INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)).double()
LABELS = torch.tensor([0, 1, 2, 0, 1, 1])
VALUES = torch.rand(6, 3, generator=torch.Generator().manual_seed(2)).double()


@pytest.mark.parametrize(
    ("head", "targets"),
    [
        (F.cross_entropy, LABELS),
        (nn.CrossEntropyLoss(label_smoothing=0.1), LABELS),
        (F.mse_loss, VALUES),
    ],
)
def test_a_loss_inside_the_model_is_split_off(head, targets):
    model = WithOwnLoss(head)
    expected = dense(model, lambda m: m(INPUTS).logits, lambda z: head(z, targets))
    inside = materialise(operator_of(model, lambda m: m(INPUTS, targets).loss / 2))
    outside = materialise(operator_of(model, lambda m: head(m(INPUTS).logits, targets)))
    torch.testing.assert_close(2 * inside, expected)
    torch.testing.assert_close(outside, expected)


def test_several_forwards_add_up():
    """A contrastive loss: z is the outputs of both forwards."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double()

    def head(z):
        return (z[0] - z[1]).square().sum() + (z[0] * z[1]).exp().sum()

    g = operator_of(model, lambda m: head((m(INPUTS), m(INPUTS.flip(0)))))
    expected = dense(model, lambda m: torch.stack([m(INPUTS), m(INPUTS.flip(0))]), head)
    torch.testing.assert_close(materialise(g), expected)


def test_a_forward_on_an_earlier_forwards_output():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()
    g = operator_of(model, lambda m: F.mse_loss(m(m(INPUTS)), INPUTS))
    expected = dense(model, lambda m: m(m(INPUTS)), lambda z: F.mse_loss(z, INPUTS))
    torch.testing.assert_close(materialise(g), expected)


def test_autocast():
    p = problem("mlp")
    p.model.eval()
    vector = torch.randn(ParameterView.of(p.model).n)
    exact = operator_of(p.model, p.loss).matvec(vector)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = operator_of(p.model, p.loss)
    assert rounded.graphs[0].cotangents[0].dtype == torch.bfloat16
    assert (rounded.matvec(vector) - exact).norm() < 0.03 * exact.norm()


def test_a_model_in_half_precision_works_on_float32_vectors():
    p = problem("mlp")
    p.model.eval()
    vector = torch.randn(ParameterView.of(p.model).n)
    exact = operator_of(p.model, p.loss).matvec(vector)
    p.model.bfloat16()
    p.inputs = p.inputs.bfloat16()
    rounded = operator_of(p.model, p.loss).matvec(vector)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.05 * exact.norm()


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.sizes, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in self.sizes:
                storage = leaf.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage._cdata)
        return out

    def _freed(self, key):
        self.now -= self.sizes.pop(key)


def test_a_large_vocabulary_costs_its_logits_once(monkeypatch):
    rows, vocabulary = 128, 50_000
    model = nn.Sequential(nn.Embedding(20, 4), nn.Tanh(), nn.Linear(4, vocabulary))
    tokens, targets = torch.randint(0, 20, (rows,)), torch.randint(0, vocabulary, (rows,))
    logits = 4 * rows * vocabulary
    monkeypatch.setattr("lipprof.curvature.cross_entropy.CHUNK", vocabulary * 8)

    def measured():
        with Live() as live:
            g = operator_of(model, lambda m: F.cross_entropy(m(tokens), targets))
            held, live.peak = live.now, live.now
            product = g.matvec(torch.ones(g.n))
        return product, held / logits, live.peak / logits

    product, held, peak = measured()
    monkeypatch.setattr("lipprof.curvature.loss.split._cut_at_logits", lambda *_: None)
    by_autograd, held_by_autograd, peak_by_autograd = measured()
    torch.testing.assert_close(product, by_autograd, rtol=1e-3, atol=1e-6)
    assert held < 1.1 < 2.9 < held_by_autograd
    assert peak < 0.6 * peak_by_autograd


class Bypassed(nn.Linear):
    def part(self, x):
        return F.linear(x, self.weight)


class Squares(nn.Module):
    def forward(self, x):
        return x.square().mean()


@pytest.mark.parametrize(
    ("model", "loss", "error", "match"),
    [
        (
            WithOwnLoss(lambda z, y: F.mse_loss(z.exp(), y)),
            lambda m: m(INPUTS, VALUES).loss + m.layers[0].weight.square().sum(),
            CurvatureError,
            "depends on layers.0.weight also around",
        ),
        (
            nn.Sequential(nn.Linear(4, 3).double(), Squares()),
            lambda m: m(INPUTS),
            CurvatureError,
            "returns its own loss",
        ),
        (
            nn.Sequential(nn.Linear(4, 3).double(), nn.Flatten(0), nn.Unflatten(0, (1, 18))),
            lambda m: m(INPUTS).mean(),
            CurvatureError,
            "linear in the model's outputs",
        ),
        (
            nn.Linear(4, 3).double(),
            lambda m: F.cross_entropy(m(INPUTS), LABELS) + m.weight.square().sum(),
            CurvatureError,
            "depends on weight also around",
        ),
        (
            Bypassed(4, 3).double(),
            lambda m: F.mse_loss(m.part(INPUTS), VALUES),
            CurvatureError,
            "not come from a call of the model",
        ),
        (
            nn.Linear(4, 4).double(),
            lambda m: (h := m(INPUTS)).square().mean() + m(h).square().mean(),
            CurvatureError,
            "another one computed from it",
        ),
        (
            nn.Linear(4, 3).double(),
            lambda m: F.cross_entropy(INPUTS * torch.ones(4, requires_grad=True), LABELS),
            NotDifferentiableError,
            "none of the profiled parameters",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(model, loss, error, match):
    with pytest.raises(error, match=match):
        operator_of(model, loss)
    assert not model._forward_hooks


def test_sparse_gradients_are_named():
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True))
    with pytest.raises(NotDifferentiableError, match="'0.weight' is sparse"):
        operator_of(model, lambda m: F.cross_entropy(m(LABELS), LABELS))


def test_a_network_without_second_derivative_is_named():
    class Distances(nn.Linear):
        def forward(self, x):
            return torch.cdist(super().forward(x), torch.zeros(3, 3).double())

    g = operator_of(Distances(4, 3).double(), lambda m: F.cross_entropy(m(INPUTS), LABELS))
    with pytest.raises(NotDifferentiableError, match="cdist"):
        g.matvec(torch.ones(g.n, dtype=torch.float64))
