"""One look at a surface: every question against a dense Hessian by finite differences."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import lipprof
from lipprof.errors import ConfigError
from tests.curvature.oracles import finite_difference_hessian
from tests.models import KINDS, problem


def dense(p):
    """The Hessian by finite differences of gradients, and the sizes of the tensors by name."""
    model = copy.deepcopy(p.model).eval()
    with sdpa_kernel(SDPBackend.MATH):
        matrix = finite_difference_hessian(lambda: p.loss(model), model.parameters())
    return matrix, {name: q.numel() for name, q in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_question_has_the_dense_answer(kind):
    p = problem(kind, torch.float64, count=12)
    matrix, sizes = dense(p)
    values = torch.linalg.eigvalsh(matrix).flip(0)
    state = {k: v.clone() for k, v in p.model.state_dict().items()}
    with lipprof.surface(p.model, p.loss) as seen:
        pairs = seen.eigenpairs(top=3, bottom=2, tol=1e-8)
        expected = torch.cat([values[:3], values[-2:]])
        torch.testing.assert_close(pairs.values, expected, rtol=1e-6, atol=1e-7)
        trace = seen.trace(matvecs=60)
        assert abs(trace.trace - float(matrix.trace())) <= 6 * trace.stderr + 1e-9
        found = seen.diagonal(probes=200)
        parts = torch.stack([d.sum() for d in matrix.diagonal().split(list(sizes.values()))])
        error = found.part_traces.std(0) / 200**0.5
        assert ((found.part_traces.mean(0) - parts).abs() < 6 * error + 1e-9).all()
        density = seen.density(probes=10, steps=20)
        assert float(density.nodes.max()) == pytest.approx(float(values[0]), rel=1e-2)
        blocks = seen.blocks("tensor", tol=1e-8)
        offset = 0
        for i, (name, size) in enumerate(sizes.items()):
            block = matrix[offset : offset + size, offset : offset + size]
            ends = torch.linalg.eigvalsh(block)[[-1, 0]]
            assert blocks.names[i] == name
            torch.testing.assert_close(blocks.values[i], ends, rtol=1e-5, atol=1e-7)
            offset += size
    assert all(torch.equal(v, state[k]) for k, v in p.model.state_dict().items())
    assert all(q.grad is None for q in p.model.parameters())


def test_the_edge_of_plain_gradient_descent_is_two_over_the_learning_rate():
    p = problem("mlp", torch.float64)
    optimizer = torch.optim.SGD(p.model.parameters(), lr=0.3)
    top = float(torch.linalg.eigvalsh(dense(p)[0])[-1])
    with lipprof.surface(p.model, p.loss) as seen:
        edge = seen.stability(optimizer, tol=1e-9)
    assert edge.edge_ratio == pytest.approx(top / (2 / 0.3), rel=1e-6)
    assert edge.sharpness_limit == pytest.approx(2 / 0.3)
    pairs = lipprof.spectrum(p.model, p.loss, top=1, bottom=0, optimizer=optimizer, tol=1e-9)
    assert float(pairs.values[0]) == pytest.approx(edge.edge_ratio, rel=1e-6)


def test_the_gauss_newton_matrix_is_asked_for_by_name():
    p = problem("mlp", torch.float64)
    pairs = lipprof.spectrum(p.model, p.loss, top=2, bottom=2, matrix="ggn", tol=1e-8)
    assert (pairs.values > -1e-9).all()
    with lipprof.surface(p.model, p.loss, matrix="ggn") as seen:
        assert seen.engine == "retained"
    with pytest.raises(ConfigError, match="retained graphs only, not engine='traced'"):
        lipprof.spectrum(p.model, p.loss, matrix="ggn", engine="traced")
    model = nn.Linear(4, 3).double()
    inputs, targets = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))

    def loss(m):
        return nn.functional.cross_entropy(m(inputs), targets)

    both = [
        lipprof.spectrum(model, loss, top=3, bottom=1, matrix=matrix).values
        for matrix in ("ggn", "hessian")
    ]
    torch.testing.assert_close(*both)


def test_a_second_opinion():
    p = problem("mlp", torch.float64)
    ours = lipprof.spectrum(p.model, p.loss, top=1, bottom=0, tol=1e-6)
    other = lipprof.spectrum(p.model, p.loss, top=1, bottom=0, tol=1e-6, engine="pyhessian")
    torch.testing.assert_close(ours.values, other.values, rtol=1e-4, atol=0.0)
    with lipprof.surface(p.model, p.loss, engine="pyhessian") as seen:
        for question in (seen.density, seen.diagonal, seen.blocks):
            with pytest.raises(ConfigError, match="PyHessian"):
                question()
        with pytest.raises(ConfigError, match="bottom"):
            seen.eigenpairs(top=1, bottom=1)
    with pytest.raises(ConfigError, match="Hessian only"):
        lipprof.spectrum(p.model, p.loss, top=1, bottom=0, engine="pyhessian", matrix="ggn")


def test_a_memory_limit_shrinks_the_basis_and_then_refuses():
    p = problem("attention", torch.float64)
    free = lipprof.spectrum(p.model, p.loss, top=2, bottom=1, tol=1e-6, memory_limit="1GiB")
    n = free.vectors.shape[1]
    with pytest.raises(ConfigError, match="MB|MiB"):
        lipprof.spectrum(p.model, p.loss, top=2, bottom=1, memory_limit=20 * 8 * n)
    for limit in range(60, 2000, 40):
        try:
            tight = lipprof.spectrum(
                p.model, p.loss, top=2, bottom=1, tol=1e-6, memory_limit=limit * 8 * n
            )
        except ConfigError:
            continue
        break
    torch.testing.assert_close(tight.values, free.values, rtol=1e-5, atol=1e-8)
    assert tight.num_matvecs >= free.num_matvecs
    with pytest.raises(ConfigError, match="4GiB"):
        lipprof.spectrum(p.model, p.loss, memory_limit="plenty")
