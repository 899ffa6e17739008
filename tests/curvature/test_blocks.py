import pytest
import torch
from torch import nn

from lipprof.curvature import HessianOperator, ParameterView, gradient_graph
from lipprof.curvature.blocks import block_spectra, blocks_of, diagonal_blocks, restricted
from lipprof.curvature.ggn import gauss_newton
from lipprof.curvature.kernels import twice_differentiable
from lipprof.errors import ConfigError
from lipprof.linalg import materialise
from tests.curvature.oracles import finite_difference_hessian
from tests.models import problem


def hessian_of(p):
    p.model.eval()
    view = ParameterView.of(p.model)
    with twice_differentiable(p.model):
        return HessianOperator(view, [gradient_graph(p.loss(p.model), view)])


class Foreign:
    """An operator that knows its parameters, and whose class nobody knows."""

    def __init__(self, operator):
        self.view, self.n = operator.view, operator.n
        self.dtype, self.device, self.matvec = operator.dtype, operator.device, operator.matvec


def entries(view, indices):
    """Positions of the parameters' entries in the flat vector."""
    ends = torch.tensor(view.numel).cumsum(0)
    return torch.cat([torch.arange(ends[i] - view.numel[i], ends[i]) for i in indices])


@pytest.mark.parametrize("kind", ["mlp", "batchnorm"])
def test_blocks_are_those_of_the_finite_difference_hessian(kind):
    p = problem(kind, torch.float64, count=6)
    operator = hessian_of(p)
    dense = finite_difference_hessian(lambda: p.loss(p.model), p.model.parameters())
    for spec in ("tensor", "module", ["*bias", "*"]):
        where = blocks_of(operator.view, spec)
        for name, block in diagonal_blocks(operator, spec).items():
            index = entries(operator.view, where[name])
            torch.testing.assert_close(
                materialise(block), dense[index][:, index], rtol=1e-5, atol=1e-9
            )


@pytest.mark.parametrize("kind", ["hessian", "ggn", "foreign"])
def test_a_block_is_the_submatrix_whatever_the_operator(kind):
    p = problem("mlp", torch.float64)
    operator = hessian_of(p)
    if kind == "ggn":
        terms = ((w, p.loss(p.model)) for w in (0.3, 0.7))
        operator = gauss_newton(p.model, terms, operator.view)
    whole = materialise(operator)
    index = entries(operator.view, [1, 2])
    block = restricted(Foreign(operator) if kind == "foreign" else operator, [2, 1, 2])
    assert block.view.names == ("0.bias", "3.weight")
    torch.testing.assert_close(materialise(block), whole[index][:, index])


def test_microbatches_keep_their_weights():
    p = problem("mlp", torch.float64)
    p.model.eval()
    view = ParameterView.of(p.model)
    parts = [(p.inputs[:30], p.targets[:30]), (p.inputs[30:], p.targets[30:])]
    graphs = [
        gradient_graph(p.loss(p.model, part), view, weight=weight)
        for part, weight in zip(parts, (0.75, 0.25), strict=True)
    ]
    for name, block in diagonal_blocks(HessianOperator(view, graphs), "tensor").items():
        expected = diagonal_blocks(hessian_of(p), "tensor")[name]
        torch.testing.assert_close(materialise(block), materialise(expected))


def test_extremes_interlace_and_equal_eigh():
    p = problem("attention", count=6)
    operator = hessian_of(p)
    matrix = materialise(operator)
    low, *_, high = torch.linalg.eigvalsh(matrix)
    blocks = diagonal_blocks(operator, "tensor")
    spectra = block_spectra(blocks, tol=1e-5)
    assert spectra.names == operator.view.names
    assert spectra.numel.tolist() == list(operator.view.numel)
    assert spectra.converged.all()
    assert (spectra.num_matvecs > 0).all()
    slack = 1e-5 * high
    assert (spectra.values <= high + slack).all()
    assert (spectra.values >= low - slack).all()
    for i, (top, bottom) in enumerate(spectra.values):
        index = entries(operator.view, [i])
        expected = torch.linalg.eigvalsh(matrix[index][:, index])
        torch.testing.assert_close(top, expected[-1], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(bottom, expected[0], rtol=1e-4, atol=1e-6)


def test_small_blocks_show_their_values_at_both_ends():
    model = nn.Sequential(nn.Linear(3, 1), nn.Softplus(), nn.Linear(1, 1)).double()
    inputs = torch.randn(20, 3, dtype=torch.float64)
    view = ParameterView.of(model)
    operator = HessianOperator(view, [gradient_graph(model(inputs).square().mean(), view)])
    spectra = block_spectra(diagonal_blocks(operator, ["*bias", "0.weight", "2.bias"]), top=2)
    matrix = materialise(operator)
    biases = torch.linalg.eigvalsh(matrix[[3, 5]][:, [3, 5]]).flip(0)
    nan = torch.nan
    torch.testing.assert_close(spectra.values[0], biases[[0, 1, 1]])
    torch.testing.assert_close(spectra.values[1], torch.linalg.eigvalsh(matrix[:3, :3]).flip(0))
    torch.testing.assert_close(
        spectra.values[2], torch.tensor([2.0, nan, 2.0]).double(), equal_nan=True
    )
    assert spectra.converged.tolist() == [[True] * 3, [True] * 3, [True, False, True]]


def test_names():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2))
            self.head = nn.Linear(2, 1)

    view = ParameterView.of(Net())
    assert list(blocks_of(view, "tensor")) == list(view.names)
    assert blocks_of(view, "module") == {
        "(root)": [0],
        "blocks.0.0": [1, 2],
        "blocks.1.0": [3, 4],
        "head": [5, 6],
    }
    assert blocks_of(view, ["blocks.0", "*.weight", "head.bias", "blocks"]) == {
        "blocks.0": [1, 2],
        "*.weight": [1, 3, 5],
        "head.bias": [6],
        "blocks": [1, 2, 3, 4],
    }
    assert blocks_of(view, "head*") == {"head*": [5, 6]}


def test_unknown_blocks_are_named_with_close_ones():
    view = ParameterView.of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
    with pytest.raises(ConfigError, match=r"'1.wieght' matches no .* Close: 1.weight"):
        blocks_of(view, ["0.bias", "1.wieght"])
    with pytest.raises(ConfigError, match="empty list"):
        blocks_of(view, [])


def test_a_last_layers_block_does_not_go_through_the_layers_before():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    view = ParameterView.of(model)
    operator = HessianOperator(view, [gradient_graph(model(torch.ones(1, 4)).pow(3).sum(), view)])
    counts = {}
    for name in ("4", "0"):
        block = diagonal_blocks(operator, name)[name]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as run:
            block.matvec(torch.ones(block.n))
        counts[name] = sum(e.count for e in run.key_averages() if e.key == "aten::mm")
    assert counts["4"] < counts["0"] / 3
