"""Kinds of training loops; ``loss(model, iteration)`` is what that step of one descends."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

INPUTS = torch.randn(24, 6, 4, generator=torch.Generator().manual_seed(5))
TARGETS = torch.randint(0, 3, (24,), generator=torch.Generator().manual_seed(6))


@dataclass
class Loop:
    """``step`` runs one iteration, the optimizer's step included."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[int], None]
    loss: Callable[[nn.Module, int], torch.Tensor]
    rtol: float = 2e-3  # of the top eigenvalue
    sources: tuple[str, ...] = ("replay",) * 2  # of the measurements; hooks: there is no spectrum
    engine: str = "retained"


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


def by_closure(build):
    model = mlp()
    optimizer = build(model.parameters())

    def step(iteration):
        def evaluate():
            optimizer.zero_grad()
            loss = criterion(model, iteration)
            loss.backward()
            return loss

        optimizer.step(evaluate)

    return Loop(model, optimizer, step, criterion)


def lbfgs():
    return by_closure(partial(torch.optim.LBFGS, lr=0.1, max_iter=3))


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
        self.cell, self.head = kind(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1)[:, :6])))))


def unfrozen_later():
    model = mlp()
    model[1].requires_grad_(False)
    loop = usual(model, torch.optim.AdamW)
    inner = loop.step

    def step(iteration):
        if iteration == 1:
            model[1].requires_grad_(True)
        inner(iteration)

    loop.step = step
    return loop


def groups_added():
    model = mlp()
    optimizer = torch.optim.AdamW(model[3].parameters(), lr=0.02)

    def step(iteration):
        if iteration == 1:
            optimizer.add_param_group({"params": list(model[1].parameters()), "lr": 1e-3})
        model.zero_grad()
        criterion(model, iteration).backward()
        optimizer.step()

    return Loop(model, optimizer, step, criterion)


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


THEN_LIVE = ("hooks", "live")


def scaled_and_fused():
    """The optimizer itself unscales the gradient, and skips steps."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step(iteration):
        optimizer.zero_grad()
        scaler.scale(criterion(model, iteration)).backward()
        scaler.step(optimizer)
        scaler.update()

    return Loop(model, optimizer, step, criterion)


def discarded_backwards():
    """Gradients of a first batch are thrown away, as where a loss is an outlier."""
    loop = usual(mlp(), torch.optim.AdamW)
    inner = loop.step

    def step(iteration):
        criterion(loop.model, iteration + 1).backward()
        inner(iteration)

    loop.step = step
    return loop


def closure():
    """As Lightning's automatic optimization steps."""
    return by_closure(partial(torch.optim.AdamW, lr=0.02))


def several_losses_at_once():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)

    def losses(m, iteration):
        logits = m(batch(iteration)[0])
        return F.cross_entropy(logits, batch(iteration)[1]), logits.square().mean()

    def step(iteration):
        optimizer.zero_grad()
        torch.autograd.backward(
            losses(model, iteration), [torch.tensor(1.0), torch.tensor(0.5)], retain_graph=False
        )
        optimizer.step()

    def total(m, iteration=0):
        first, second = losses(m, iteration)
        return first + second / 2

    return Loop(model, optimizer, step, total)


def gradient_penalty():
    """The loss differentiates the model itself."""

    def loss(model, iteration=0):
        inputs = batch(iteration)[0].requires_grad_()
        logits = model(inputs)
        (slope,) = torch.autograd.grad(logits.square().sum(), inputs, create_graph=True)
        return F.cross_entropy(logits, batch(iteration)[1]) + 0.1 * slope.square().mean()

    return replace(usual(mlp(), torch.optim.AdamW, loss), sources=THEN_LIVE)


class Balanced(nn.Module):
    """Keeps an auxiliary loss aside, as mixtures of experts do."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.auxiliary = nn.Linear(24, 6), nn.Linear(6, 3), []

    def forward(self, x):
        inner = torch.tanh(self.stem(x.flatten(1)))
        self.auxiliary.append(inner.var(0).sum())
        return self.head(inner)


def bypassing():
    def loss(model, iteration=0):
        total = criterion(model, iteration) + 0.3 * sum(model.auxiliary)
        model.auxiliary.clear()
        return total

    return replace(usual(Balanced(), loss=loss), sources=THEN_LIVE)


@dataclass
class Prediction:
    logits: torch.Tensor
    hidden: dict[str, torch.Tensor]


class Pair(NamedTuple):
    first: torch.Tensor
    rest: list[Prediction]


class Structured(nn.Module):
    """Keyword arguments, and outputs in a dataclass within a named tuple."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(24, 6), nn.Linear(6, 3)

    def forward(self, *, x, scale):
        inner = torch.tanh(self.stem(x.flatten(1))) * scale
        return Pair(inner.sum(), [Prediction(self.head(inner), {"inner": inner})])


def structured():
    def loss(model, iteration=0):
        inputs, targets = batch(iteration)
        found = model(x=inputs, scale=0.5).rest[0]
        return F.cross_entropy(found.logits, targets)

    return usual(Structured(), torch.optim.AdamW, loss)


def intermediate_output():
    """The loss takes both an output and what that was computed from."""

    def loss(model, iteration=0):
        inputs, targets = batch(iteration)
        found = model(x=inputs, scale=0.5).rest[0]
        return F.cross_entropy(found.logits, targets) + found.hidden["inner"].square().mean()

    return replace(usual(Structured(), torch.optim.AdamW, loss), sources=THEN_LIVE)


class Critic:
    """A loss by way of a second model, which has its own optimizer and step."""

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def __call__(self, model, iteration=0):
        return F.softplus(-self.model(model(batch(iteration)[0]))).mean()


def adversarial():
    critic = Critic()
    loop = usual(mlp(), torch.optim.AdamW, critic)
    other = torch.optim.AdamW(critic.model.parameters(), lr=0.02)
    inner = loop.step

    def step(iteration):
        inner(iteration)
        fake = loop.model(batch(iteration)[0]).detach()
        other.zero_grad()
        F.softplus(critic.model(fake)).mean().backward()
        other.step()

    loop.step = step
    return loop


class OnceDifferentiable(torch.autograd.Function):
    """As attention from an extension: no second derivative."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return gradient * (1 - y * y)


class Fused(nn.Module):
    def __init__(self, activation=OnceDifferentiable.apply):
        super().__init__()
        self.stem, self.head, self.activation = nn.Linear(24, 6), nn.Linear(6, 3), activation

    def forward(self, x):
        return self.head(self.activation(self.stem(x.flatten(1))))


def once_differentiable_layer():
    """Central differences serve; the truth is that of a plain tanh."""

    def plain(model, iteration=0):
        model.activation = torch.tanh
        return criterion(model, iteration)

    loop = usual(Fused(), torch.optim.AdamW, rtol=2e-2)
    sources = ("hooks", "replay")
    return replace(loop, loss=plain, sources=sources, engine="differences")


def compiled_step(backend):
    """Forward, loss and backward in one compiled function."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)

    @torch.compile(backend=backend)
    def differentiate(inputs, targets):
        F.cross_entropy(model(inputs), targets).backward()

    def step(iteration):
        optimizer.zero_grad()
        differentiate(*batch(iteration))
        optimizer.step()

    return Loop(model, optimizer, step, criterion, sources=THEN_LIVE)


def compiled_update():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    update = torch.compile(optimizer.step, backend="eager")

    def step(iteration):
        optimizer.zero_grad()
        criterion(model, iteration).backward()
        update()

    return Loop(model, optimizer, step, criterion)


def compiled_in_place():
    model = mlp()
    model.compile(backend="eager")
    return replace(usual(model, torch.optim.AdamW), sources=("live",) * 2)


def compiled_criterion():
    measure = torch.compile(F.cross_entropy, backend="aot_eager")

    def loss(model, iteration=0):
        inputs, targets = batch(iteration)
        return measure(model(inputs), targets)

    return replace(usual(mlp(), loss=loss), loss=criterion, sources=THEN_LIVE)


def functional_gradients():
    """Gradients by torch.func, handed to an optimizer: there is no backward to see."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)

    def step(iteration):
        inputs, targets = batch(iteration)

        def loss(parameters):
            return F.cross_entropy(torch.func.functional_call(model, parameters, inputs), targets)

        gradients = torch.func.grad(loss)({k: p.detach() for k, p in model.named_parameters()})
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name]
        optimizer.step()

    return Loop(model, optimizer, step, criterion, sources=("hooks",) * 2)


def data_parallel():
    return usual(nn.DataParallel(mlp()), torch.optim.AdamW)


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
    "fused optimizer under a grad scaler": scaled_and_fused,
    "discarded backwards": discarded_backwards,
    "closure": closure,
    "several losses at once": several_losses_at_once,
    "gradient penalty": gradient_penalty,
    "auxiliary loss": bypassing,
    "structured outputs": structured,
    "intermediate output": intermediate_output,
    "adversarial": adversarial,
    "once differentiable": once_differentiable_layer,
    "compiled step": lambda: compiled_step("eager"),
    "compiled step, aot": lambda: compiled_step("aot_eager"),
    "compiled update": compiled_update,
    "compiled in place": compiled_in_place,
    "compiled criterion": compiled_criterion,
    "gradients by torch.func": functional_gradients,
    "data parallel": data_parallel,
}
