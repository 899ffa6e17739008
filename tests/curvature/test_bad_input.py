"""What cannot be measured is refused by one error that names the cause and the way out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import lipprof
from lipprof.errors import ConfigError, NonfiniteError, NotDifferentiableError
from tests.curvature.test_hessian import NoSecondDerivative
from tests.linalg import spectra


class Block(nn.Module):
    """Two blocks deep, so that a place in it is worth naming."""

    def __init__(self, operator=lambda x: x):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)
        self.operator = operator

    def forward(self, x):
        return self.head(self.operator(self.encoder(x)))


INPUTS = torch.linspace(-1, 1, 15).view(5, 3)
TOKENS = torch.tensor([[0, 1], [1, 3], [4, 4]])


def squares(model):
    return model(INPUTS).square().mean()


def frozen():
    return Block().requires_grad_(False)


def on_two_devices():
    model = Block()
    model.head.to("meta")
    return model


def complex_head():
    model = Block()
    model.head = nn.Linear(4, 2, dtype=torch.complex64)
    return model


def float8_head():
    model = Block()
    model.head.to(torch.float8_e4m3fn)
    return model


def lazy():
    return nn.Sequential(nn.LazyLinear(2))


def fused_attention(x):
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        q = x.view(1, 1, *x.shape)
        return F.scaled_dot_product_attention(q, q, q)[0, 0]


def inside_checkpoint(x):
    return checkpoint(torch.tanh, x, use_reentrant=True)


def hides_parameters(model):
    """The first operation: its inputs need no gradient, and autograd.grad would pass it over."""
    hidden = checkpoint(model.encoder, INPUTS.clone().requires_grad_(), use_reentrant=True)
    return model.head(hidden).square().mean()


def bag():
    return nn.Sequential(nn.EmbeddingBag(5, 3), nn.Linear(3, 2))


def infinite_gradient(model):
    return model.head.weight.sub(model.head.weight.detach()).square().sum().sqrt()


def infinite_curvature(model):
    zero = model.head.weight - model.head.weight.detach()
    return zero.abs().pow(1.5).sum()


other = Block()

REFUSED = {
    "no parameter": (nn.Tanh, squares, ConfigError, r"none has requires_grad=True"),
    "frozen": (frozen, squares, ConfigError, r"none has requires_grad=True.*frozen model"),
    "vector loss": (
        Block,
        lambda m: m(INPUTS),
        NotDifferentiableError,
        r"one element, got torch.float32 of shape \(5, 2\).*\.mean\(\)",
    ),
    "number": (
        Block,
        lambda m: squares(m).item(),
        NotDifferentiableError,
        r"one element, got float",
    ),
    "None": (Block, lambda m: None, NotDifferentiableError, r"got NoneType"),
    "complex loss": (
        Block,
        lambda m: squares(m) * 1j,
        NotDifferentiableError,
        r"real tensor.*got torch.complex64",
    ),
    "detached": (
        Block,
        lambda m: squares(m).detach(),
        NotDifferentiableError,
        r"does not depend on any parameter.*no_grad",
    ),
    "other model": (
        Block,
        lambda m: squares(other),
        NotDifferentiableError,
        r"none of the profiled parameters.*another model",
    ),
    "nan loss": (
        Block,
        lambda m: squares(m) * torch.nan,
        NonfiniteError,
        r"The loss is nan.*log\(0\)",
    ),
    "infinite loss": (Block, lambda m: squares(m) / 0, NonfiniteError, r"The loss is inf"),
    "infinite gradient": (
        Block,
        infinite_gradient,
        NonfiniteError,
        r"gradient is NaN or infinite in head.weight.*sqrt\(0\)",
    ),
    "infinite product": (
        Block,
        infinite_curvature,
        NonfiniteError,
        r"product (returned|is) NaN or infini",
    ),
    "two devices": (
        on_two_devices,
        squares,
        ConfigError,
        r"several devices \(.* on cpu, .*'head.bias' on meta\).*freeze",
    ),
    "meta device": (lambda: Block().to("meta"), squares, ConfigError, r"hold no values"),
    "complex": (complex_head, squares, ConfigError, r"'head.weight' is torch.complex64.*Freeze"),
    "float8": (float8_head, squares, ConfigError, r"'head.weight' is torch.float8.*Freeze"),
    "lazy": (lazy, squares, ConfigError, r"'0.weight' of a lazy module.*one forward"),
    "no second derivative": (
        lambda: Block(lambda x: torch.cdist(x, torch.zeros(4, 4))),
        squares,
        NotDifferentiableError,
        r"operator cdist behind 'encoder.2.\w+' has no second.*central differences",
    ),
    "fused attention of the user's": (
        lambda: Block(fused_attention),
        squares,
        NotDifferentiableError,
        r"scaled_dot_product_flash_attention\w* behind 'encoder.2.\w+'.*plain implementation",
    ),
    "embedding bag": (
        bag,
        lambda m: m(TOKENS).square().mean(),
        NotDifferentiableError,
        r"operator embedding_bag behind '0.weight'",
    ),
    "once differentiable": (
        lambda: Block(NoSecondDerivative.apply),
        squares,
        NotDifferentiableError,
        r"NoSecondDerivative behind 'encoder.2.\w+'.*once_differentiable.*central differences",
    ),
}


ONCE_ONLY = {
    "no second derivative",
    "fused attention of the user's",
    "embedding bag",
    "once differentiable",
}
"""Where the default engine goes on by differences of gradients; see test_engine."""


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_with_cause_and_way_out(case):
    build, loss, error, match = REFUSED[case]
    engine = "retained" if case in ONCE_ONLY else "auto"
    with pytest.raises(error, match=f"(?s){match}"):
        lipprof.spectrum(build(), loss, top=1, bottom=1, engine=engine)


@pytest.mark.parametrize(
    "pairs", [{"top": 7, "bottom": 0}, {"top": 3, "bottom": 4}, {"top": 0, "bottom": 0}]
)
def test_more_pairs_than_parameters_are_refused(pairs):
    with pytest.raises(ConfigError, match=r"n=6: top \+ bottom must be between 1 and 6"):
        lipprof.spectrum(nn.Linear(3, 2, bias=False), squares, **pairs)


def test_all_pairs_are_fine():
    pairs = lipprof.spectrum(nn.Linear(3, 2, bias=False), squares, top=3, bottom=3)
    expected = torch.linalg.eigvalsh(torch.block_diag(*[INPUTS.T @ INPUTS / 5] * 2).double())
    torch.testing.assert_close(pairs.values, expected.flip(0), rtol=1e-5, atol=1e-6)


def test_frozen_integers_are_no_obstacle():
    model = Block()
    model.codes = nn.Parameter(torch.arange(3), requires_grad=False)
    assert lipprof.spectrum(model, squares, top=1, bottom=0).converged.all()


def test_sparse_gradients_have_the_curvature_of_dense_ones():
    values = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 3, sparse=sparse), nn.Tanh(), nn.Linear(3, 2))
        model.double()
        pairs = lipprof.spectrum(model, lambda m: m(TOKENS).square().mean(), top=3, bottom=3)
        values.append(pairs.values)
    torch.testing.assert_close(*values)


def test_tied_weights_count_once():
    """With θ in two places, (2θ)ᵀA(2θ)/2 has the Hessian 4A over θ, not [[A, A], [A, A]]."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(20, 1, bias=False).double()
            self.second = nn.Linear(20, 1, bias=False).double()
            self.second.weight = self.first.weight

    matrix = spectra.with_spectrum(torch.linspace(1, 5, 20, dtype=torch.float64))

    def loss(m):
        total = (m.first.weight + m.second.weight).squeeze()
        return total @ matrix @ total / 2

    pairs = lipprof.spectrum(Tied(), loss, top=1, bottom=1)
    torch.testing.assert_close(pairs.values, torch.tensor([20.0, 4.0], dtype=torch.float64))
    assert pairs.vectors.shape == (2, 20)


def without_checkpoint(model):
    return model.head(model.encoder(INPUTS)).square().mean()


@pytest.mark.parametrize(
    ("operator", "loss"), [(inside_checkpoint, squares), (lambda x: x, hides_parameters)]
)
def test_reentrant_checkpoints_are_looked_through_or_refused(operator, loss):
    """By what evaluates the loss itself; a loss of the loop's has its graph already."""
    torch.manual_seed(0)
    model = Block(operator)
    plain = Block(torch.tanh if operator is inside_checkpoint else lambda x: x)
    plain.load_state_dict(model.state_dict())
    reference = squares if loss is squares else without_checkpoint
    expected = lipprof.spectrum(plain, reference, top=3, bottom=1).values
    torch.testing.assert_close(lipprof.spectrum(model, loss, top=3, bottom=1).values, expected)
    with pytest.raises(NotDifferentiableError, match="Call it with use_reentrant=False"):
        lipprof.hutchinson_sample(loss(model), list(model.parameters()))
