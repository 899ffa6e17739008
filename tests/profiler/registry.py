"""Kinds of training loops; ``first_loss`` is what step 0 of one descends."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

INPUTS = torch.randn(24, 6, 4, generator=torch.Generator().manual_seed(5))
TARGETS = torch.randint(0, 3, (24,), generator=torch.Generator().manual_seed(6))


@dataclass
class Loop:
    """``step`` runs one iteration, the optimizer's step included."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[int], None]
    first_loss: Callable[[nn.Module], torch.Tensor]
    rtol: float = 2e-3  # of the top eigenvalue of step 0
    apart: str = ""  # prefix of the names of parameters that step 0 does not step


def batch(iteration, size=12):
    start = (iteration * size) % 24
    return INPUTS[start : start + size], TARGETS[start : start + size]


def criterion(model, iteration=0):
    inputs, targets = batch(iteration)
    return F.cross_entropy(model(inputs), targets)


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(24, 6), nn.Tanh(), nn.Linear(6, 3))


def usual(model, make=torch.optim.SGD, loss=criterion, rtol=2e-3):
    """zero_grad, loss, backward, step."""
    optimizer = make(model.parameters(), lr=0.02)

    def step(iteration):
        optimizer.zero_grad()
        loss(model, iteration).backward()
        optimizer.step()

    return Loop(model, optimizer, step, loss, rtol)


def autocast():
    def loss(model, iteration=0):
        with torch.autocast("cpu", torch.bfloat16):
            return criterion(model, iteration)

    return usual(mlp(), torch.optim.AdamW, loss, rtol=0.05)


def grad_scaler():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(iteration):
        optimizer.zero_grad()
        scaler.scale(criterion(model, iteration)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    return Loop(model, optimizer, step, criterion)


def accumulation():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)

    def total(m, iteration=0):
        return (criterion(m, 2 * iteration) + criterion(m, 2 * iteration + 1)) / 2

    def step(iteration):
        optimizer.zero_grad()
        for micro in range(2):
            (criterion(model, 2 * iteration + micro) / 2).backward()
        optimizer.step()

    return Loop(model, optimizer, step, total)


def lbfgs():
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def step(iteration):
        def closure():
            optimizer.zero_grad()
            loss = criterion(model, iteration)
            loss.backward()
            return loss

        optimizer.step(closure)

    return Loop(model, optimizer, step, criterion)


def several_backwards():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)

    def total(m, iteration=0):
        return criterion(m, iteration) + m(batch(iteration)[0]).square().mean()

    def step(iteration):
        optimizer.zero_grad()
        inputs, targets = batch(iteration)
        logits = model(inputs)
        F.cross_entropy(logits, targets).backward(retain_graph=True)
        logits.square().mean().backward()
        optimizer.step()

    return Loop(model, optimizer, step, total)


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(24, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.use_reentrant = use_reentrant

    def forward(self, x):
        x = self.stem(x.flatten(1))
        inner = checkpoint(lambda y: torch.tanh(self.body(y)), x, use_reentrant=self.use_reentrant)
        return self.head(inner)


def compiled(backend="eager"):
    return usual(torch.compile(mlp(), backend=backend))


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.mix(x, x, x, need_weights=False)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1))))))


def unfrozen_later():
    model = mlp()
    model[1].requires_grad_(False)
    loop = usual(model, torch.optim.AdamW)
    inner = loop.step

    def step(iteration):
        if iteration == 3:
            model[1].requires_grad_(True)
        inner(iteration)

    loop.step = step
    return loop


def groups_added():
    model = mlp()
    optimizer = torch.optim.AdamW(model[3].parameters(), lr=0.02)

    def step(iteration):
        if iteration == 3:
            optimizer.add_param_group({"params": list(model[1].parameters()), "lr": 1e-3})
        model.zero_grad()
        criterion(model, iteration).backward()
        optimizer.step()

    return Loop(model, optimizer, step, criterion, apart="1.")


def ema():
    loop = usual(mlp(), torch.optim.AdamW)
    average = torch.optim.swa_utils.AveragedModel(
        loop.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    inner = loop.step

    def step(iteration):
        inner(iteration)
        average.update_parameters(loop.model)
        copy.deepcopy(loop.model)(batch(iteration)[0])
        average(batch(iteration)[0]).sum().backward()

    loop.step = step
    return loop


def functional():
    def loss(model, iteration=0):
        inputs, targets = batch(iteration)
        return F.cross_entropy(
            torch.func.functional_call(model, dict(model.named_parameters()), inputs), targets
        )

    return usual(mlp(), torch.optim.AdamW, loss)


def contrastive():
    def loss(model, iteration=0):
        one, two = model(batch(iteration)[0]), model(batch(iteration + 1)[0])
        return F.mse_loss(one @ two.T, torch.eye(12))

    return usual(mlp(), torch.optim.AdamW, loss)


def discriminator():
    """A second model, with its own optimizer and backward, in the same iteration."""
    loop = usual(mlp(), torch.optim.AdamW)
    other = usual(mlp())
    inner = loop.step

    def step(iteration):
        other.optimizer.zero_grad()
        (
            -criterion(other.model, iteration) + loop.model(batch(iteration)[0]).detach().sum()
        ).backward()
        other.optimizer.step()
        inner(iteration)

    loop.step = step
    return loop


def batchnorm():
    return usual(nn.Sequential(nn.Flatten(), nn.Linear(24, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)))


LOOPS = {
    "plain": lambda: usual(mlp()),
    "bf16 autocast": autocast,
    "grad scaler": grad_scaler,
    "accumulation": accumulation,
    "lbfgs": lbfgs,
    "several backwards": several_backwards,
    "checkpoint": lambda: usual(Checkpointed(False)),
    "reentrant checkpoint": lambda: usual(Checkpointed(True)),
    "compiled": compiled,
    "multihead attention": lambda: usual(SelfAttention(), torch.optim.AdamW),
    "lstm": lambda: usual(Recurrent(nn.LSTM), torch.optim.AdamW),
    "gru": lambda: usual(Recurrent(nn.GRU), torch.optim.AdamW),
    "batchnorm": batchnorm,
    "tied weights": lambda: usual(Tied()),
    "unfrozen later": unfrozen_later,
    "groups added": groups_added,
    "ema": ema,
    "functional call": functional,
    "contrastive": contrastive,
    "second model": discriminator,
}
