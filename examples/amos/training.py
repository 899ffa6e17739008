"""One run: the character GPT on real text under one strategy; seeds are paired between strategies.

A seed fixes initial parameters, batches and probe, whatever the strategy.
"""

import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import LambdaLR

import lipprof
from examples.amos.presets import FIRST, LEVELS, PRESETS, SECONDS, Preset, rule_text
from lipprof.advice import Choice, Losses, Recommendation
from lipprof.demo.gpt import CharGPT
from lipprof.demo.text import Text, load_text

QUICK: dict[str, Any] = dict(top=0, bottom=0, stability=False, engine="retained")
MEASURED = {
    "descent": QUICK | dict(rule="descent", diagonal_probes=0, hysteresis=1.0),
    "greedy": QUICK | dict(rule="descent(horizon=1)", diagonal_probes=0, hysteresis=1.0),
    "newton-safe": QUICK | dict(rule="newton-safe"),
}
"""Strategies that a profiler decides, with its settings."""

VALIDATION_BATCHES, VALIDATION_WINDOWS = 4, 128


@dataclass(frozen=True, slots=True)
class Cell:
    """What is run."""

    arm: str
    level: str
    strategy: str
    seed: int
    preset: str = "cpu"

    @property
    def file(self) -> str:
        """Name of its result; the first arm alone is one run for all second arms."""
        parts = ["adamw", "alone"] if self.strategy == "first" else [self.arm, self.level]
        return f"{'-'.join([*parts, self.strategy])}-seed{self.seed}.json".replace(" ", "-")


class Inverted(lipprof.Contest):
    """The control: the loser of each trial goes on."""

    def _judged(self, first: Losses, second: Losses, before: float = np.nan) -> Recommendation:
        decision = super()._judged(first, second, before)
        if np.isnan(before):  # no trial
            return decision
        lost = Choice.SECOND if decision.choice[0] == Choice.FIRST else Choice.FIRST
        return self._uniform(lost)


class Run:
    """A model, its AMOS and what steps it."""

    def __init__(self, cell: Cell, text: Text, device: str) -> None:
        self.cell, self.text, self.device = cell, text, device
        self.preset: Preset = PRESETS[cell.preset]
        self.second = SECONDS[cell.arm]
        torch.manual_seed(cell.seed)
        self.model = CharGPT(
            text.vocabulary,
            length=self.preset.length,
            layers=self.preset.layers,
            width=self.preset.width,
        ).to(device)
        self.batches = torch.Generator().manual_seed(1_000 + cell.seed)
        self.labels = torch.Generator(device).manual_seed(2_000 + cell.seed)
        build = partial(self.second.build, lr=self.second.lr * LEVELS[cell.level])
        alone = cell.strategy not in {"contest", "inverted", *MEASURED}
        self.optimizer = lipprof.AMOS(
            self.model.named_parameters(),
            first=FIRST,
            second=build,
            eligible=lambda name, p: name.startswith("blocks.") and p.ndim == 2,
            rule=rule_text(cell.strategy, self.preset, cell.seed) if alone else "newton-safe",
        )
        self.matvecs, self.measuring_s = 0, 0.0
        self.scheduler = LambdaLR(self.optimizer, self._rate)
        probe = self._batch("train", self.preset.probe, 9_000 + cell.seed)
        contest = {"contest": lipprof.Contest, "inverted": Inverted}.get(cell.strategy)
        self.contest = contest and contest(
            self.model, self.optimizer, loss=lambda m: m.loss(probe), plan=self.preset.plan
        )
        self.measured = MEASURED.get(cell.strategy, {}) and {
            **MEASURED[cell.strategy],
            "loss": lambda m: m.loss(probe),
            "every": self.preset.every,
            "warmup": 2 * self.preset.every,
        }

    def _rate(self, step: int) -> float:
        done = min(1.0, step / self.preset.steps)
        warm = min(1.0, (step + 1) / self.preset.warmup)
        return warm * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))

    def _batch(self, split: str, size: int, seed: int | None = None) -> tuple[Tensor, Tensor]:
        generator = self.batches if seed is None else torch.Generator().manual_seed(seed)
        inputs, targets = self.text.batch(
            split, size=size, length=self.preset.length, generator=generator
        )
        return inputs.to(self.device), targets.to(self.device)

    def train(self) -> list[float]:
        """Train, under a profiler where a rule needs one; return the loss of every step."""
        if not self.measured:
            return self._train()
        with TemporaryDirectory() as folder:
            path = Path(folder) / "run.h5"
            with lipprof.attach(self.model, self.optimizer, path, **self.measured):
                losses = self._train()
            with lipprof.open_run(path) as run:
                self.measuring_s = float(run["seconds"].sum())
                self.matvecs = int(run["num_matvecs"].sum())
        return losses

    def _train(self) -> list[float]:
        losses = []
        for _ in range(self.preset.steps):
            batch = self._batch("train", self.preset.batch)
            self._observe(batch)

            def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
                self.optimizer.zero_grad()
                loss = self.model.loss(batch)
                loss.backward()
                return loss

            stepping = self.optimizer if self.contest is None else self.contest
            losses.append(float(stepping.step(closure).detach()))
            self.scheduler.step()
        return losses

    def _observe(self, batch: tuple[Tensor, Tensor]) -> None:
        """Feed Sophia its diagonal, every tenth step."""
        if not self.second.curvature or not self.optimizer.curvature_due:
            return
        if self.second.curvature == "hutchinson":
            with sdpa_kernel(SDPBackend.MATH):
                self.optimizer.observe_hutchinson(self.model.loss(batch), self.labels)
            return
        self.optimizer.zero_grad()
        logits = self.model(batch[0]).flatten(0, 1)
        chances = logits.detach().softmax(-1)
        sampled = torch.multinomial(chances, 1, generator=self.labels).squeeze(1)
        F.cross_entropy(logits, sampled).backward()
        self.optimizer.observe_sampled_gradient(batch_size=sampled.numel())

    @torch.no_grad()
    def validation(self) -> float:
        """Loss over fixed windows of the validation text."""
        losses = [
            float(self.model.loss(self._batch("validation", VALIDATION_WINDOWS, 100 + i)))
            for i in range(VALIDATION_BATCHES)
        ]
        return float(np.mean(losses))


def run(cell: Cell, device: str = "cpu") -> dict[str, Any]:
    """Run one cell.

    Args:
        cell: what.
        device: where.

    Returns:
        What its JSON file holds.
    """
    one = Run(cell, load_text(), device)
    started = time.process_time()
    losses = one.train()
    seconds = time.process_time() - started
    contest = one.contest
    return {
        **asdict(cell),
        "lr": one.second.lr * LEVELS[cell.level],
        "text": one.text.origin,
        "parameters": sum(p.numel() for p in one.model.parameters()),
        "validation": one.validation(),
        "train": float(np.mean(losses[-20:])),
        "cpu_s": seconds,
        "second_share": float(np.mean([c == 2 for c in _movable(one.optimizer)])),
        "extra": contest.extra if contest else 0,
        "trial_s": contest.seconds if contest else 0.0,
        "matvecs": one.matvecs,
        "measuring_s": one.measuring_s,
        "switches": len(one.optimizer.switches),
        "decisions": [(d.iteration, d.reason(0)) for d in contest.decisions] if contest else [],
    }


def _movable(optimizer: lipprof.AMOS) -> list[int]:
    plan = optimizer.plan()
    return [int(c) for name, c in optimizer.assigned.items() if plan[name] == "may switch"]
