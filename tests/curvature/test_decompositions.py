"""Third derivatives of layers and losses against differences of exact products, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lipprof.curvature import (
    ParameterView,
    ProbeLoss,
    third_derivatives,
    thrice_differentiable,
    twice_differentiable,
)
from lipprof.curvature.hessian.retained import HessianOperator, gradient_graph
from lipprof.curvature.third.check import ProductDifferences
from lipprof.linalg import materialise
from tests.curvature.oracles import finite_difference_hessian

FLAT, SEQUENCE, IMAGE = (6, 8), (6, 5, 8), (6, 4, 6, 6)
TARGETS = torch.tensor([0, 1, 2, 2, 1, 0])


class Mixed(nn.Module):
    """A layer between a smooth one and a smooth head, so that all its derivatives count."""

    def __init__(self, layer, shape, *, first=None):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = first or (nn.Conv2d(4, 4, 1) if len(shape) == 4 else nn.Linear(8, 8))
        self.layer = layer
        self.inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter += 0.3 * torch.randn(
                    parameter.shape, generator=generator, dtype=torch.float64
                )

    def forward(self):
        y = self.layer(self.first(self.inputs).tanh())
        y = y[0] if isinstance(y, tuple) else y
        ramp = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        return (ramp * (y + 0.3 * ramp).sin()).sum() + (ramp * y**3).mean()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x)


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, 8)

    def forward(self, x):
        return x * self.embedding(TARGETS)


class Criterion(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(8, 3), function

    def forward(self, x):
        return self.function(self.linear(x))


class OwnCall(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def soft():
    return torch.linspace(0.1, 0.9, 18, dtype=torch.float64).view(6, 3)


WRONG_WHEN_FUSED = {
    "layer_norm": lambda: (nn.LayerNorm(8), FLAT),
    "layer_norm over two axes": lambda: (nn.LayerNorm((5, 8)), SEQUENCE),
    "layer_norm without parameters": lambda: (nn.LayerNorm(8, elementwise_affine=False), FLAT),
    "torch.layer_norm": lambda: (OwnCall(lambda x: torch.layer_norm(x, (8,), eps=1e-3)), FLAT),
    "batch_norm in train mode": lambda: (nn.BatchNorm2d(4), IMAGE),
    "batch_norm 1d": lambda: (nn.BatchNorm1d(8, affine=False), FLAT),
    "instance_norm": lambda: (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), IMAGE),
    "TransformerEncoderLayer": lambda: (
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        SEQUENCE,
    ),
}
RIGHT = {
    "weight_norm": lambda: (nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)), FLAT),
    "group_norm": lambda: (nn.GroupNorm(2, 4), IMAGE),
    "batch_norm in eval mode": lambda: (nn.BatchNorm2d(4).eval(), IMAGE),
    "instance_norm in eval mode": lambda: (
        nn.InstanceNorm2d(4, track_running_stats=True).eval(),
        IMAGE,
    ),
    "rms_norm": lambda: (nn.RMSNorm(8), FLAT),
    "gelu": lambda: (nn.GELU(), FLAT),
    "gelu tanh": lambda: (nn.GELU("tanh"), FLAT),
    "silu": lambda: (nn.SiLU(), FLAT),
    "softplus": lambda: (nn.Softplus(), FLAT),
    "softmax": lambda: (nn.Softmax(-1), FLAT),
    "log_softmax": lambda: (nn.LogSoftmax(-1), FLAT),
    "attention": lambda: (Attention(), SEQUENCE),
    "MultiheadAttention": lambda: (SelfAttention(8, 2, batch_first=True), SEQUENCE),
    "embedding": lambda: (Embedded(), FLAT),
    "conv1d": lambda: (nn.Conv1d(5, 3, 3), SEQUENCE),
    "conv2d": lambda: (nn.Conv2d(4, 3, 3, stride=2, padding=1), IMAGE),
    "conv_transpose2d": lambda: (nn.ConvTranspose2d(4, 3, 2, stride=2), IMAGE),
    "max_pool": lambda: (nn.MaxPool2d(2), IMAGE),
    "avg_pool": lambda: (nn.AvgPool2d(2), IMAGE),
    "LSTM": lambda: (nn.LSTM(8, 4, batch_first=True), SEQUENCE),
    "GRU": lambda: (nn.GRU(8, 4, batch_first=True), SEQUENCE),
    "RNN": lambda: (nn.RNN(8, 4, batch_first=True), SEQUENCE),
    "dropout": lambda: (nn.Dropout(0.3), FLAT),
    "cross_entropy": lambda: (Criterion(lambda z: F.cross_entropy(z, TARGETS)), FLAT),
    "label smoothing": lambda: (
        Criterion(lambda z: F.cross_entropy(z, TARGETS, label_smoothing=0.1)),
        FLAT,
    ),
    "nll": lambda: (Criterion(lambda z: F.nll_loss(z.log_softmax(-1), TARGETS)), FLAT),
    "bce_with_logits": lambda: (
        Criterion(lambda z: F.binary_cross_entropy_with_logits(z, soft())),
        FLAT,
    ),
    "mse": lambda: (Criterion(lambda z: F.mse_loss(z.tanh(), soft())), FLAT),
}


def third_and_difference(model, kernels):
    """∇(vᵀHv) for a random v, and the difference of products that it is the limit of."""
    view, loss = ParameterView.of(model), ProbeLoss(model, lambda m: m())
    vector = torch.randn(view.n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    vector /= vector.norm()
    with kernels(model):
        torch.manual_seed(loss.seed)
        operator = HessianOperator(view, [gradient_graph(model(), view)])
        third = third_derivatives(operator, view, vector[None]).gradients[0]
    difference, _ = next(ProductDifferences(loss, view, double=True).along(vector))
    return third, difference


@pytest.mark.parametrize("name", WRONG_WHEN_FUSED)
def test_layers_that_torch_gets_wrong_are_right_when_decomposed(name):
    model = Mixed(*WRONG_WHEN_FUSED[name]())
    third, difference = third_and_difference(model, thrice_differentiable)
    torch.testing.assert_close(third, difference, rtol=0, atol=1e-5 * float(difference.norm()))
    fused, _ = third_and_difference(model, twice_differentiable)
    assert (fused - difference).norm() > 0.05 * difference.norm()  # else: no need for it any more


@pytest.mark.parametrize("name", RIGHT)
def test_layers_that_need_no_decomposition(name):
    third, difference = third_and_difference(Mixed(*RIGHT[name]()), thrice_differentiable)
    torch.testing.assert_close(third, difference, rtol=0, atol=1e-5 * float(difference.norm()))


def test_the_hessian_through_weight_norm_is_right_when_decomposed():
    model = Mixed(*RIGHT["weight_norm"]())
    expected = finite_difference_hessian(model, model.parameters())

    def hessian():
        view = ParameterView.of(model)
        return materialise(HessianOperator(view, [gradient_graph(model(), view)]))

    scale = float(expected.norm())
    with twice_differentiable(model):
        torch.testing.assert_close(hessian(), expected, rtol=0, atol=1e-6 * scale)
    assert (hessian() - expected).norm() > 0.01 * scale  # else: no need for it any more


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*WRONG_WHEN_FUSED, "weight_norm"])
def test_values_and_running_statistics_are_those_of_the_fused_layer(name, dtype):
    layer, shape = (WRONG_WHEN_FUSED | RIGHT)[name]()
    layer.to(dtype)
    inputs = torch.randn(shape, dtype=dtype)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    expected = layer(inputs)
    statistics = {key: value.clone() for key, value in layer.state_dict().items()}
    layer.load_state_dict(before)
    with thrice_differentiable(layer):
        found = layer(inputs)
    assert found.dtype == expected.dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=16 * eps, atol=16 * eps)
    torch.testing.assert_close(layer.state_dict(), statistics, rtol=0, atol=0)


def test_torch_is_as_before_afterwards_whatever_happens():
    names = "layer_norm", "batch_norm", "instance_norm", "_weight_norm"
    before = [getattr(torch, name) for name in names]

    def failing():
        with thrice_differentiable(nn.LayerNorm(8)):
            assert not any(getattr(torch, name) in before for name in names)
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert [getattr(torch, name) for name in names] == before
