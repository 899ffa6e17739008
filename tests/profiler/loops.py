"""Training loops as people write them; each returns what training leaves behind."""

import torch
from torch import nn

from tests.models import problem


def sgd_momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


def clip(model, _scheduler):
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def plain(_model, _scheduler):
    pass


def train(
    kind, make_optimizer, attach, *, iterations=50, before_step=plain, schedule=False, accumulate=1
):
    """Run the loop; ``attach(problem, optimizer)`` may attach a profiler, or do nothing."""
    torch.manual_seed(1)
    p = problem(kind)
    model = p.model.train()
    optimizer = make_optimizer(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30) if schedule else None
    profiler = attach(p, optimizer)
    for iteration in range(iterations):
        optimizer.zero_grad()
        for micro in range(accumulate):
            batch = p.batch(iteration * accumulate + micro)
            (p.loss(model, batch) / accumulate).backward()
        before_step(model, scheduler)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    if profiler is not None:
        profiler.close()
    return {
        "parameters": [x.detach() for x in model.parameters()],
        "buffers": dict(model.named_buffers()),
        "grad": [x.grad for x in model.parameters()],
        "state": optimizer.state_dict()["state"],
        "rng": torch.get_rng_state(),
        "training": [m.training for m in model.modules()],
    }
