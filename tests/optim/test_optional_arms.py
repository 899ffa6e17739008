"""SOAP and Shampoo of the package pytorch-optimizer as arms; skipped where it is not installed."""

from functools import partial

import pytest
import torch
from torch import nn, optim

from lipprof.advice import Choice
from lipprof.optim import AMOS

from .problems import Problem, everything, parameters_equal, recommend

package = pytest.importorskip("pytorch_optimizer")

ADAMW = partial(optim.AdamW, lr=0.01)
ARMS = {
    "soap": partial(package.SOAP, lr=0.01, precondition_frequency=2, precondition_1d=True),
    "shampoo": partial(package.Shampoo, lr=0.01),
}
arms = pytest.mark.parametrize("arm", ARMS.values(), ids=ARMS)


@arms
def test_all_on_it_is_that_optimizer_alone(arm):
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos = AMOS(model.named_parameters(), ADAMW, arm, start="second")
    assert set(amos.plan().values()) == {"may switch"}
    problem.train(model, amos, range(8))
    problem.train(reference, arm(reference.parameters()), range(8))
    assert parameters_equal(model, reference)


@arms
def test_switches_and_resumes_bitwise(arm, tmp_path):
    problem = Problem()

    def build(model):
        return AMOS(model.named_parameters(), ADAMW, arm, units="module")

    def drive(model, amos, iterations):
        def before(iteration):
            sides = [Choice.SECOND, Choice.FIRST][iteration // 2 % 2 :] + [Choice.SECOND]
            amos.follow(recommend(dict(zip(amos.assigned, sides, strict=False)), iteration))

        problem.train(model, amos, iterations, before)

    straight, stopped = problem.model(), problem.model()
    drive(straight, build(straight), range(9))
    before = build(stopped)
    drive(stopped, before, range(5))
    torch.save(before.state_dict(), tmp_path / "state.pt")
    resumed = build(stopped)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    drive(stopped, resumed, range(5, 9))
    assert parameters_equal(straight, stopped)
    assert all(p.isfinite().all() for p in straight.parameters())


@arms
def test_what_is_cut_stays_first(arm):
    model = Problem().model()
    amos = AMOS(model.named_parameters(), ADAMW, arm, units=33)
    plans = list(amos.plan().values())
    assert "0.bias[:3] (the second optimizer refuses it:" in plans[0]
    assert "register_elementwise" in plans[0]


@arms
def test_convolutions_as_matrices_learn(arm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))
    inputs, labels = torch.randn(16, 1, 4, 4), torch.arange(16) % 2
    amos = AMOS(model.named_parameters(), ADAMW, arm, matrices=True)
    amos.follow(everything(model, Choice.SECOND))
    held = {tuple(p.shape) for g in amos._arms[1].optimizer.param_groups for p in g["params"]}
    assert held == {(4, 9), (4,), (2, 16), (2,)}
    losses = []
    for _ in range(30):
        amos.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        amos.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
