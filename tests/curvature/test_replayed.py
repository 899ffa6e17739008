"""Replayed products; on a CPU a stand-in runs the work again into the recorded output."""

import logging

import pytest
import torch

import lipprof
from lipprof.curvature import ParameterView, twice_differentiable, undisturbed
from lipprof.curvature.hessian.engine import HessianEngine
from lipprof.curvature.hessian.replayed import Recording, ReplayedOperator, replayed
from lipprof.curvature.loss.losses import ProbeLoss
from lipprof.linalg import materialise
from tests.models import problem


def rerun(work):
    """As a CUDA graph does it: always the same input and the same output."""
    output = work().clone()
    return Recording(lambda: output.copy_(work()), output)


def operator_of(p, engine="traced", **options):
    view = ParameterView.of(p.model)
    with undisturbed(p.model, training=False), twice_differentiable(p.model):
        return HessianEngine(ProbeLoss(p.model, p.loss), view, engine=engine, **options).operator()


def test_it_is_the_same_matrix():
    plain = operator_of(problem("mlp"))
    operator = ReplayedOperator(plain, rerun)
    torch.testing.assert_close(materialise(operator), materialise(plain), rtol=0, atol=0)
    assert operator.loss == plain.loss
    torch.testing.assert_close(operator.gradient(), plain.gradient(), rtol=0, atol=0)


def test_a_product_outlives_the_next_one():
    operator = ReplayedOperator(operator_of(problem("mlp")), rerun)
    one, two = torch.eye(operator.n, dtype=operator.dtype)[:2]
    first = operator.matvec(one)
    kept = first.clone()
    operator.matvec(two)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("engine", ["retained", "traced"])
def test_without_cuda_it_says_so_and_goes_on(engine, caplog):
    with caplog.at_level(logging.WARNING, "lipprof"):
        operator = operator_of(problem("mlp"), engine, cuda_graph=True)
    assert "cuda_graph=True is without effect" in caplog.text
    assert not isinstance(operator, ReplayedOperator)
    assert replayed(operator) is operator


@pytest.mark.gpu
def test_a_cuda_graph_gives_the_same_eigenvalues():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    model, x = model.cuda(), torch.randn(32, 8).cuda()
    plain, graphed = (
        lipprof.spectrum(
            model, lambda m: m(x).square().mean(), top=2, bottom=1, engine="traced", cuda_graph=on
        )
        for on in (False, True)
    )
    torch.testing.assert_close(graphed.values, plain.values, rtol=1e-4, atol=1e-6)
