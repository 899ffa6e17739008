"""One run: a task under one strategy; seeds are paired between strategies."""

import math
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import LambdaLR

import lipprof
from examples.amos.presets import (
    CURVATURE,
    LEVELS,
    LONGER,
    OPTIMIZERS,
    PRESETS,
    PROFILED,
    RATES,
    Preset,
    rule_text,
)
from examples.amos.tasks import build_task
from lipprof.advice import Choice
from lipprof.curvature import Units


@dataclass(frozen=True, slots=True)
class Cell:
    """What is run."""

    arm: str  # the second one
    level: str
    strategy: str
    seed: int
    preset: str = "cpu"
    task: str = "gpt"
    first: str = "adamw"
    units: Units = "tensor"

    @property
    def name(self) -> str:
        """Of its result; the first arm alone is one run for all second arms."""
        pair = self.arm if self.first == "adamw" else f"{self.first}-first-{self.arm}"
        parts = {
            "first": [self.first, "alone"],
            "tune-first": [self.first, self.level],
            LONGER: [self.first, self.level],
        }.get(self.strategy, [pair, self.level])
        units = [] if self.units == "tensor" else [f"units={self.units}"]
        whole = "-".join([*parts, self.strategy, *units, f"seed{self.seed}"])
        return whole.replace(" ", "-")

    @property
    def size(self) -> Preset:
        """Of the task."""
        size = PRESETS[self.task][self.preset]
        if self.strategy == LONGER:
            return replace(size, steps=round(float(self.level) * size.steps))
        return size

    @property
    def lr(self) -> tuple[float, float]:
        """Of the first and of the second arm."""
        known = RATES[self.task]
        if self.strategy == "tune-first":
            return float(self.level), known[self.arm]
        if self.strategy == "tune-second":
            return known[self.first], float(self.level)
        if self.strategy == LONGER:
            return known[self.first], known[self.arm]
        return known[self.first], known[self.arm] * LEVELS[self.level]


CONTESTS = {
    "contest": lipprof.Contest,
    "calibrated": partial(lipprof.Contest, calibrate=True),
}
EIGENSPACES = {"elmo": lipprof.ELMO, "fosi": lipprof.FOSI}


class Run:
    """A task, its AMOS and what steps it."""

    def __init__(self, cell: Cell, device: str = "cpu") -> None:
        self.cell, self.preset = cell, cell.size
        self.task = build_task(cell.task, self.preset, cell.seed, device)
        self.labels = torch.Generator(device).manual_seed(2_000 + cell.seed)
        probe = self.task.probe()
        self.probe_loss = lambda model: self.task.loss(model, probe)
        self.optimizer = self._optimizer()
        self.scheduler = LambdaLR(self.optimizer, self.rate)
        contest = CONTESTS.get(cell.strategy)
        self.contest = contest and contest(
            self.task.model, self.optimizer, loss=self.probe_loss, plan=self.preset.plan
        )

    def _optimizer(self) -> Any:
        cell, parameters = self.cell, self.task.model.named_parameters()
        first, second = (
            partial(OPTIMIZERS[arm], lr=lr)
            for arm, lr in zip((cell.first, cell.arm), cell.lr, strict=True)
        )
        if cell.strategy in EIGENSPACES:
            return EIGENSPACES[cell.strategy](parameters, first, rule="newton-safe")
        decided = cell.strategy in CONTESTS or cell.strategy in PROFILED
        return lipprof.AMOS(
            parameters,
            first=first,
            second=second,
            units=cell.units,
            matrices=True,
            eligible=self.task.eligible,
            rule="newton-safe" if decided else rule_text(cell.strategy, self.preset, cell.seed),
        )

    def rate(self, step: int) -> float:
        """Learning rate of a step over the given one."""
        done = min(1.0, step / self.preset.steps)
        warm = min(1.0, (step + 1) / self.preset.warmup)
        return warm * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))

    def train(self) -> list[float]:
        """Train; return the loss of every step."""
        losses = []
        for _ in range(self.preset.steps):
            losses.append(self.step(self.task.batch()))
            self.scheduler.step()
        return losses

    def step(self, batch: Any) -> float:
        """Take a step on a batch; return its loss."""
        labels = self.labels.get_state()

        def observe() -> None:
            self.labels.set_state(labels)  # the same for every contestant
            self._observe(batch)

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = self.task.loss(self.task.model, batch)
            loss.backward()
            return loss

        fed = self.cell.arm in CURVATURE and self.cell.strategy not in EIGENSPACES
        if self.contest is not None:
            return float(self.contest.step(closure, observe if fed else None).detach())
        if fed and self.optimizer.curvature_due:
            observe()
        return float(self.optimizer.step(closure).detach())

    def _observe(self, batch: Any) -> None:
        """Feed Sophia its diagonal; due every tenth step."""
        if CURVATURE[self.cell.arm] == "hutchinson":
            with sdpa_kernel(SDPBackend.MATH):
                loss = self.task.loss(self.task.model, batch)
                self.optimizer.observe_hutchinson(loss, self.labels)
            return
        self.optimizer.zero_grad()
        logits = self.task.logits(batch)
        chances = logits.detach().softmax(-1)
        sampled = torch.multinomial(chances, 1, generator=self.labels).squeeze(1)
        F.cross_entropy(logits, sampled).backward()
        self.optimizer.observe_sampled_gradient(batch_size=sampled.numel())


def run(cell: Cell, device: str = "cpu") -> dict[str, Any]:
    """Run one cell.

    Args:
        cell: what.
        device: where.

    Returns:
        What its JSON file holds: losses in nats; ``seconds``, wall time of training, of which
        ``decision_s`` went into decisions; what those cost in ``gradients`` and ``hvps``;
        ``second_share``, of the units that may switch or of the eigenspaces, at the end; of a
        contest who won, why, and what calibration found.
    """
    with ExitStack() as stack:
        one = Run(cell, device)
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run.h5"
        settings = PROFILED.get(cell.strategy)
        if settings is not None:
            paced: dict[str, Any] = {
                "every": cell.size.every,
                "warmup": 2 * cell.size.every,
            } | settings
            stack.enter_context(
                lipprof.attach(one.task.model, one.optimizer, path, loss=one.probe_loss, **paced)
            )
        started = time.perf_counter(), time.process_time()
        losses = one.train()
        seconds, cpu_s = time.perf_counter() - started[0], time.process_time() - started[1]
        cost = (
            _cost_of_trials(one.contest, cell.size)
            if settings is None
            else _cost_of_measurements(path)
        )
    return {
        **asdict(cell),
        "first_lr": cell.lr[0],
        "lr": cell.lr[1],
        "data": one.task.origin,
        "parameters": sum(p.numel() for p in one.task.model.parameters()),
        "validation": one.task.validation(),
        "train": float(np.mean(losses[-20:])),
        "seconds": seconds,
        "cpu_s": cpu_s,
        "second_share": _second_share(one.optimizer),
        "switches": len(one.optimizer.switches),
        **cost,
        **_told(one.contest),
    }


def _told(contest: lipprof.Contest | None) -> dict[str, Any]:
    """Who won, why, and what calibration found; nothing where there was no contest."""
    if contest is None:
        return {"winner": None, "reason": None, "before": None, "verdicts": {}}
    outcome = contest.outcome  # None: training ended before the trial
    return {
        "winner": contest.entry.label,
        "reason": outcome and outcome.reason,
        "before": outcome and outcome.before,
        "verdicts": contest.verdicts,
    }


def _cost_of_trials(contest: lipprof.Contest | None, preset: Preset) -> dict[str, Any]:
    if contest is None:
        return {"gradients": 0, "hvps": 0, "decision_s": 0.0}
    of_probe = contest.probe_gradients * preset.probe / preset.batch
    return {"gradients": contest.extra + of_probe, "hvps": 0, "decision_s": contest.seconds}


def _cost_of_measurements(path: Path) -> dict[str, Any]:
    with lipprof.open_run(path) as recorded:
        return {
            "gradients": 0,
            "hvps": int(recorded["num_matvecs"].sum()),
            "decision_s": float(recorded["seconds"].sum()),
        }


def _second_share(optimizer: Any) -> float:
    sides = optimizer.assigned
    if isinstance(optimizer, lipprof.AMOS):
        plan = optimizer.plan()
        sides = {name: side for name, side in sides.items() if plan[name].startswith("may switch")}
    return float(np.mean([side is Choice.SECOND for side in sides.values()]))
