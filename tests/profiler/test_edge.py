"""The edge of stability as it is recorded, for the very step that follows."""

import pytest
import torch
from torch import nn

import lipprof


@pytest.mark.parametrize("source", ["closure", "replay"])
def test_the_recorded_ratio_is_that_of_the_step_about_to_be_taken(source, tmp_path):
    torch.manual_seed(0)
    inputs, targets = torch.randn(64, 5).double(), torch.randn(64, 1).double()
    model = nn.Linear(5, 1, bias=False).double()
    hessian = 2 * inputs.T @ inputs / 64
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-2, alpha=0.9)

    def loss(m):
        return (m(inputs) - targets).square().mean()

    keywords = {"loss": loss} if source == "closure" else {}
    expected = []

    def before(opt, *_):
        gradient = model.weight.grad
        square = opt.state[model.weight].get("square_avg", torch.zeros_like(gradient))
        square = 0.9 * square + 0.1 * gradient**2
        scale = (1e-2 / (square.sqrt() + 1e-8)).flatten().sqrt()
        top = torch.linalg.eigvalsh(scale[:, None] * hessian * scale)[-1]
        expected.append(float(top) / 2)

    optimizer.register_step_pre_hook(before)
    path = tmp_path / "run.h5"
    with lipprof.attach(model, optimizer, path, every=1, top=1, bottom=1, tol=1e-6, **keywords):
        for _ in range(4):
            optimizer.zero_grad()
            (loss(model) * 1.0).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    with lipprof.open_run(path) as run:
        assert run["edge_ratio"].tolist() == pytest.approx(expected, rel=1e-2)


def test_an_optimizer_without_a_rule_is_told_of_once(tmp_path, caplog):
    class Mine(torch.optim.SGD):
        pass

    model = nn.Linear(3, 2)
    optimizer = Mine(model.parameters(), lr=0.1)
    with lipprof.attach(model, optimizer, tmp_path / "run.h5", every=1, top=1, bottom=0):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().mean().backward()
            optimizer.step()
    assert caplog.text.count("edge of stability is not measured") == 1
    with lipprof.open_run(tmp_path / "run.h5") as run:
        assert len(run) == 3
        assert (run["edge_ratio"] != run["edge_ratio"]).all()
