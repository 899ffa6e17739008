"""The replayed step's Hessian against the same step computed with twice differentiable kernels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import lipprof
from lipprof.curvature import HessianOperator, ParameterView, gradient_graph
from lipprof.linalg import materialise
from tests.models import Attention, problem
from tests.profiler import loops


def dense_step_hessian(model, loss):
    """The whole Hessian of a step, forward and criterion under math attention; (n, n)."""
    view = ParameterView.of(model)
    with sdpa_kernel(SDPBackend.MATH):
        return materialise(HessianOperator(view, [gradient_graph(loss(), view)]))


def extremes(matrix, k):
    rising = torch.linalg.eigvalsh(matrix)
    return torch.cat([rising.flip(0)[:k], rising[:k].flip(0)])


def step_once(model, loss, tmp_path, **settings):
    """One training step under a profiler; its measurement."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lipprof.attach(
        model, optimizer, tmp_path / "run.h5", top=3, bottom=3, tol=1e-6, **settings
    ) as prof:
        loss().backward()
        optimizer.step()
    return prof.last


def test_fused_attention_with_the_criterion_in_the_loop(tmp_path):
    p = problem("attention", torch.float64, count=10)
    p.model.drop.p = 0.0

    def loss():
        return p.loss(p.model)

    expected = extremes(dense_step_hessian(p.model, loss), 3)
    measured = step_once(p.model, loss, tmp_path)
    torch.testing.assert_close(torch.from_numpy(measured.eigenvalue), expected, rtol=1e-6, atol=0)


def test_dropout_masks_are_replayed(tmp_path):
    p = problem("mlp", torch.float64)
    p.model.train()
    torch.manual_seed(5)
    expected = extremes(dense_step_hessian(p.model, lambda: p.loss(p.model)), 3)
    torch.manual_seed(5)
    measured = step_once(p.model, lambda: p.loss(p.model), tmp_path)
    torch.testing.assert_close(torch.from_numpy(measured.eigenvalue), expected, rtol=1e-6, atol=0)


class ReturnsLoss(nn.Module):
    """As Hugging Face models and nanoGPT do: logits and the loss computed from them."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, tokens, *, targets):
        logits = self.inner(tokens)
        return {"logits": logits, "loss": F.cross_entropy(logits.flatten(0, 1), targets.flatten())}


def test_a_model_that_returns_its_loss(tmp_path):
    p = problem("attention", torch.float64, count=10)
    model = ReturnsLoss(Attention().double())

    def loss():
        return model(p.inputs, targets=p.targets)["loss"]

    expected = extremes(dense_step_hessian(model, loss), 3)
    measured = step_once(model, loss, tmp_path)
    torch.testing.assert_close(torch.from_numpy(measured.eigenvalue), expected, rtol=1e-6, atol=0)


def test_accumulated_microbatches_add_up_to_the_step(tmp_path):
    p = problem("mlp", torch.float64)
    p.model.eval()
    expected = extremes(dense_step_hessian(p.model, lambda: p.loss(p.model)), 3)
    expected_loss = p.loss(p.model).item()
    optimizer = torch.optim.SGD(p.model.parameters(), lr=0.1)
    with lipprof.attach(p.model, optimizer, tmp_path / "run.h5", top=3, bottom=3, tol=1e-6) as prof:
        for start in range(0, 40, 10):
            batch = p.inputs[start : start + 10], p.targets[start : start + 10]
            (p.loss(p.model, batch) / 4).backward()
        optimizer.step()
    values = torch.from_numpy(prof.last.eigenvalue)
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=0)
    assert prof.last.loss == pytest.approx(expected_loss)


@pytest.mark.filterwarnings("ignore:.*GradScaler")
def test_the_factor_of_a_grad_scaler_is_divided_out(tmp_path):
    p = problem("mlp", torch.float64)
    p.model.eval()
    expected = extremes(dense_step_hessian(p.model, lambda: p.loss(p.model)), 3)
    optimizer = torch.optim.SGD(p.model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    with lipprof.attach(p.model, optimizer, tmp_path / "run.h5", top=3, bottom=3, tol=1e-6) as prof:
        scaler.scale(p.loss(p.model)).backward()
        scaler.step(optimizer)
    torch.testing.assert_close(torch.from_numpy(prof.last.eigenvalue), expected, rtol=1e-6, atol=0)


def test_a_penalty_in_the_loop_is_noticed_and_the_live_graph_serves(tmp_path, caplog):
    p = problem("mlp", torch.float64)
    p.model.eval()
    optimizer = torch.optim.SGD(p.model.parameters(), lr=0.0)

    def loss():
        penalty = sum(x.square().sum() for x in p.model.parameters())
        return p.loss(p.model) + 0.3 * penalty

    expected = extremes(dense_step_hessian(p.model, loss), 3)
    path = tmp_path / "run.h5"
    with lipprof.attach(p.model, optimizer, path, every=1, top=3, bottom=3, tol=1e-6):
        for _ in range(3):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    with lipprof.open_run(path) as run:
        assert run["status"].tolist() == [2, 0, 0]
        assert "differs from the training step's" in run["reason"][0]
        torch.testing.assert_close(torch.tensor(run["eigenvalue"][1]), expected, rtol=1e-6, atol=0)
    announced = [r for r in caplog.records if "twice differentiable kernels" in r.message]
    assert len(announced) == 1


@pytest.mark.parametrize("trouble", ["no backward", "compiled later"])
def test_what_cannot_be_replayed_is_recorded_and_training_goes_on(trouble, tmp_path):
    p = problem("mlp")
    model = p.model
    optimizer = loops.adamw(model.parameters())
    path = tmp_path / "run.h5"
    with lipprof.attach(model, optimizer, path, every=1, top=1, bottom=1):
        if trouble == "compiled later":
            model.compile(backend="eager")
        loss = p.loss(model)
        if trouble == "no backward":
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient
        else:
            loss.backward()
        optimizer.step()
    with lipprof.open_run(path) as run:
        assert run["status"].tolist() == [2]
        assert "loss=" in run["reason"][0]
