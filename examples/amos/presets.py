"""How large and how long; which optimizers, at which learning rates; which controls.

``cpu`` takes 5 to 25 seconds of one core a run, ``long`` four times that, ``test`` one second;
``large-batch`` a minute, nearly all of it for gradients; ``paper``, with App. J's widths, is meant
for a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.optim import SGD, AdamW

import lipprof
from examples.amos.muon import Muon
from lipprof import ContestPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Everything about the experiment but what is compared."""

    batch: int
    steps: int
    warmup: int  # steps of linear growth of the learning rates; a cosine to a tenth follows
    probe: int  # windows or images of the probe by which is decided
    every: int  # steps between the measurements of a profiler, the first after two of them
    plan: ContestPlan = ContestPlan()
    width: int = 0
    layers: int = 0  # of the GPT
    length: int = 0  # characters

    @property
    def describe(self) -> str:
        """Steps and batch, in words."""
        return f"{self.steps:,} steps of {self.batch}"


_images = partial(Preset, batch=64, probe=64, every=20)
_small_gpt = partial(Preset, layers=2, width=64, warmup=20, probe=16, every=20)
_tiny = {"batch": 4, "steps": 12, "warmup": 2, "probe": 4, "every": 2}
_quick_trials = ContestPlan(start=2, period=4)

PRESETS = {
    "gpt": {
        "paper": Preset(
            layers=4, width=128, length=64, batch=64, steps=4_000, warmup=100, probe=256,
            every=50,
        ),
        "cpu": _small_gpt(length=32, batch=16, steps=1_000),
        "long": _small_gpt(length=32, batch=16, steps=4_000),
        "large-batch": _small_gpt(length=64, batch=64, steps=1_000),
        "test": Preset(layers=1, width=16, length=16, **_tiny, plan=_quick_trials),
    },
    "cnn": {
        "paper": _images(batch=128, steps=4_000, warmup=100, probe=512, every=50),
        "cpu": _images(steps=250, warmup=20),
        "test": Preset(**_tiny, plan=_quick_trials),
    },
    "resnet18": {
        "paper": _images(batch=128, steps=4_000, warmup=100, probe=512, every=50, width=64),
        "cpu": _images(batch=32, steps=120, warmup=10, width=8),
        "test": Preset(**_tiny, width=8, plan=_quick_trials),
    },
}  # fmt: skip


def _soap(params: Any, lr: float) -> Any:
    from pytorch_optimizer import SOAP  # noqa: PLC0415 - optional

    return SOAP(params, lr=lr)


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adamw": partial(AdamW, betas=(0.9, 0.95), weight_decay=0.1),
    "muon": Muon,
    "soap": _soap,
    "sophia-g": partial(lipprof.Sophia, rho=0.05, estimator="gnb"),
    "sophia-h": partial(lipprof.Sophia, rho=0.05, estimator="hutchinson"),
    "sgd": partial(SGD, momentum=0.9),
}
FIRSTS = ("adamw", "sgd")
SECONDS = ("muon", "soap", "sophia-g", "sophia-h", "sgd")
CURVATURE = {"sophia-g": "gnb", "sophia-h": "hutchinson"}
"""What diagonal they take."""

RATES = {
    "gpt": {
        "adamw": 3e-3,
        "muon": 0.03,
        "soap": 0.01,
        "sophia-g": 7.5e-4,
        "sophia-h": 7.5e-4,
        "sgd": 0.1,
    },
    "cnn": {"adamw": 8e-3, "sgd": 0.1, "muon": 0.02, "sophia-g": 1e-3},
    "resnet18": {"adamw": 4e-3, "sgd": 0.1, "muon": 0.02},
}
"""Good learning rates: near the best of those that the pages of results list."""

GRIDS: dict[str, tuple[float, ...]] = {
    "adamw": (1e-3, 2e-3, 3e-3, 4e-3, 8e-3, 0.016),
    "sgd": (0.01, 0.03, 0.1, 0.2, 0.3),
    "muon": (0.01, 0.02, 0.03, 0.04, 0.08),
    "soap": (0.005, 0.01, 0.02, 0.04, 0.08),
    "sophia-g": (3.75e-4, 7.5e-4, 1.5e-3, 3e-3, 6e-3),
    "sophia-h": (3.75e-4, 7.5e-4, 1.5e-3, 3e-3, 6e-3),
}
"""Learning rates that were tried on seed 0."""

TUNING = {"tune-first": "the first arm alone", "tune-second": "the second arm alone"}
"""Strategies in which the level is a learning rate."""

LONGER = "longer"
"""The first arm alone for more steps; the level is how many times as many."""

LEVELS = {"16x low": 1 / 16, "4x low": 1 / 4, "good": 1.0, "4x high": 4.0, "16x high": 16.0}

STRATEGIES = {
    "first": "the first arm alone",
    "second": "the second arm alone",
    "contest": "AMOS by a trial",
    "calibrated": "the same, where both arms compete with calibrated learning rates as well",
    "descent": "AMOS by rule descent",
    "greedy": "the same over one step: descent(horizon=1)",
    "newton-safe": "AMOS by eq. 8",
    "random": "half of the tensors on either arm",
    "shallow": "the deeper half on the first arm",
    "deep": "the shallower half on the first arm",
    "first-then-second": "the first arm for 15 %, then the second",
}

UNIT_STRATEGIES = {
    "own": "AMOS by the rule newton-safe on the diagonal that the second arm is fed",
    "half": "AMOS with the half of largest L on the first arm, on the same diagonal",
    "elmo": "ELMO's step in eigenspaces by the rule newton-safe, the first arm elsewhere",
    "fosi": "FOSI's step in eigenspaces by the rule newton-safe, the first arm elsewhere",
}
"""Of the comparison of units."""

_quiet = partial(dict, stability=False, strict=True, engine="retained")
_descent = partial(_quiet, top=0, bottom=0, diagonal_probes=0, hysteresis=1.0)
_pairs = _quiet(top=4, bottom=1, tol=1e-2, diagonal_probes=0, every=50)
PROFILED: dict[str, dict[str, Any]] = {
    "descent": _descent(rule="descent"),
    "greedy": _descent(rule="descent(horizon=1)"),
    "newton-safe": _quiet(top=0, bottom=0, rule="newton-safe"),
    "elmo": _pairs,
    "fosi": _pairs,
}
"""Settings of the profiler where a strategy needs one; ``every`` is else the preset's."""


def rule_text(strategy: str, preset: Preset, seed: int) -> str:
    """Write the rule of a strategy that needs no measurement."""
    return {
        "first": "random(share=1.0)",
        LONGER: "random(share=1.0)",
        "tune-first": "random(share=1.0)",
        "second": "random(share=0.0)",
        "tune-second": "random(share=0.0)",
        "own": "newton-safe",
        "half": "quantile(share=0.5)",
        "random": f"random(share=0.5, seed={seed})",
        "shallow": "depth(share=0.5, side=deep)",
        "deep": "depth(share=0.5, side=shallow)",
        "first-then-second": f"first-then-second(until={round(0.15 * preset.steps)})",
    }[strategy]
