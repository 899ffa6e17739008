"""How large and how long; which optimizers, at which learning rates; which controls.

``cpu`` takes about ten seconds of one core a run, ``test`` one, ``full`` is meant for a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.optim import SGD, AdamW

import lipprof
from examples.amos.muon import Muon
from lipprof import ContestPlan


@dataclass(frozen=True, slots=True)
class Preset:
    """Everything about the experiment but what is compared."""

    layers: int
    width: int
    length: int
    batch: int
    steps: int
    warmup: int  # steps of linear growth of the learning rates; a cosine to a tenth follows
    probe: int  # windows of the probe by which trials are decided
    plan: ContestPlan
    every: int  # iterations between measurements of rule descent, the first after two of them


PRESETS = {
    "full": Preset(4, 128, 64, 64, 4_000, 100, 256, ContestPlan(first=100), 50),
    "cpu": Preset(2, 32, 32, 16, 500, 20, 64, ContestPlan(), 20),
    "test": Preset(1, 16, 16, 4, 12, 2, 4, ContestPlan(first=4, period=4), 2),
}

FIRST = partial(AdamW, lr=8e-3, betas=(0.9, 0.95), weight_decay=0.1)
"""AdamW, its learning rate the best of 4e-3, 6e-3, 8e-3, 1.2e-2 and 1.6e-2 at about this size."""


@dataclass(frozen=True, slots=True)
class Second:
    """A second arm and its good learning rate."""

    build: Callable[..., Any]
    lr: float
    curvature: str = ""  # gnb or hutchinson, where it takes a diagonal


SECONDS = {
    "muon": Second(Muon, 0.03),
    "soap": Second(lambda params, lr: _soap(params, lr), 0.01),
    "sophia-g": Second(partial(lipprof.Sophia, rho=0.05, estimator="gnb"), 3e-3, "gnb"),
    "sophia-h": Second(
        partial(lipprof.Sophia, rho=0.05, estimator="hutchinson"), 3e-3, "hutchinson"
    ),
    "sgd": Second(partial(SGD, momentum=0.9), 0.1),
}

LEVELS = {"16x low": 1 / 16, "4x low": 1 / 4, "good": 1.0, "4x high": 4.0, "16x high": 16.0}

STRATEGIES = {
    "first": "the first arm alone",
    "second": "the second arm alone",
    "contest": "AMOS by trial periods",
    "inverted": "the loser of each trial goes on",
    "descent": "AMOS by rule descent",
    "greedy": "the same over one step: descent(horizon=1)",
    "newton-safe": "AMOS by eq. 8",
    "random": "half of the tensors on either arm",
    "shallow": "the deeper half on the first arm",
    "deep": "the shallower half on the first arm",
    "first-then-second": "the first arm for 15 %, then the second",
}


def rule_text(strategy: str, preset: Preset, seed: int) -> str:
    """Write the rule of a strategy that needs no measurement."""
    return {
        "first": "random(share=1.0)",
        "second": "random(share=0.0)",
        "random": f"random(share=0.5, seed={seed})",
        "shallow": "depth(share=0.5, side=deep)",
        "deep": "depth(share=0.5, side=shallow)",
        "first-then-second": f"first-then-second(until={round(0.15 * preset.steps)})",
    }[strategy]


def _soap(params: Any, lr: float) -> Any:
    from pytorch_optimizer import SOAP  # noqa: PLC0415 - optional

    return SOAP(params, lr=lr)
