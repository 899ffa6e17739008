"""A step of AMOS and of Sophia beside the optimizers that they are made of, and what state takes.

25 million parameters in 200 tensors, random gradients that stay.  The contestants of a subject take
turns; the first is what the others are compared with, or the sum of several is (``arms``).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lipprof.optim import AMOS, Sophia
from tests.benchmarks import timing
from tests.benchmarks.memory import peak_bytes
from tests.benchmarks.sections import Column, Row, Section, Setting, megabytes, seconds, spread

TENSORS, SHAPE = 200, (250, 500)
REPETITIONS = 15
STEPS = 3  # within a repetition

Factory = Callable[[Any], Optimizer]
FOREACH = partial(AdamW, lr=1e-3, foreach=True)
FUSED = partial(AdamW, lr=1e-3, fused=True)
SOPHIA = partial(Sophia, lr=1e-3, foreach=True)


def parameters(setting: Setting, *, part: slice = slice(None)) -> list[nn.Parameter]:
    count = TENSORS // 20 if setting.quick else TENSORS
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for _ in range(count)[part]:
        p = nn.Parameter((0.02 * torch.randn(SHAPE, generator=generator)).to(setting.device))
        p.grad = (1e-3 * torch.randn(SHAPE, generator=generator)).to(setting.device)
        tensors.append(p)
    return tensors


def divided(setting: Setting, first: Factory, second: Factory, away: float, **options: Any) -> AMOS:
    """AMOS with a share of the tensors on its second side."""
    tensors = parameters(setting)
    moved = tensors[: round(away * len(tensors))]
    among = {id(p) for p in moved}
    return AMOS(
        tensors,
        first,
        second,
        eligible=lambda _, p: id(p) in among or not moved,
        start="second" if moved else "first",
        **options,
    )


def halves(setting: Setting, first: Factory, second: Factory) -> list[Optimizer]:
    """Two optimizers with half of the tensors each, as one would write them without AMOS."""
    half = (TENSORS // 20 if setting.quick else TENSORS) // 2
    return [
        second(parameters(setting, part=slice(half))),
        first(parameters(setting, part=slice(half, None))),
    ]


def one_side(setting: Setting) -> dict[str, list[Optimizer]]:
    return {
        "AdamW, foreach": [FOREACH(parameters(setting))],
        "AdamW, fused": [FUSED(parameters(setting))],
        "Sophia, foreach": [SOPHIA(parameters(setting))],
        "AMOS, all on AdamW": [divided(setting, FOREACH, SOPHIA, 0)],
        "AMOS, the same, check_finite=False": [
            divided(setting, FOREACH, SOPHIA, 0, check_finite=False)
        ],
        "AMOS, the same, rollback='always'": [
            divided(setting, FOREACH, SOPHIA, 0, rollback="always")
        ],
    }


def two_sides(first: Factory, second: Factory) -> Callable[[Setting], dict[str, list[Optimizer]]]:
    def build(setting: Setting) -> dict[str, list[Optimizer]]:
        half = partial(divided, setting, first, second, 0.5)
        return {
            "the two optimizers": halves(setting, first, second),
            "AMOS, restart": [half(idle_state="restart")],
            "AMOS, restart, check_finite=False": [half(idle_state="restart", check_finite=False)],
            "AMOS, warm": [half()],
        }

    return build


SUBJECTS: dict[str, Callable[[Setting], dict[str, list[Optimizer]]]] = {
    "one side": one_side,
    "foreach halves": two_sides(FOREACH, SOPHIA),
    "fused halves": two_sides(FUSED, FUSED),
}


def measure(setting: Setting, subject: str) -> list[Row]:
    setting.say(f"optimizers: {subject}")
    contestants = SUBJECTS[subject](setting)

    def steps(optimizers: Sequence[Optimizer]) -> None:
        for _ in range(STEPS):
            for optimizer in optimizers:
                optimizer.step()

    calls = {name: partial(steps, optimizers) for name, optimizers in contestants.items()}
    samples = timing.interleaved(calls, setting.repetitions(REPETITIONS), warmups=2)
    baseline = samples[next(iter(samples))]
    return [
        {
            "subject": subject,
            "optimizer": name,
            "ratio": timing.ratio(samples[name], baseline).as_dict(),
            "seconds": timing.Summary.of([s / STEPS for s in samples[name]]).median,
            "state": sum(map(state_bytes, optimizers)),
            "temporary": peak_bytes(partial(steps, optimizers), setting.device),
        }
        for name, optimizers in contestants.items()
    ]


def state_bytes(optimizer: Optimizer) -> int:
    """What the state of an optimizer takes."""

    def size(value: Any) -> int:
        if isinstance(value, dict):
            return sum(map(size, value.values()))
        return value.numel() * value.element_size() if isinstance(value, Tensor) else 0

    return sum(map(size, optimizer.state.values()))


SECTION = Section(
    name="optimizers",
    title="A step of AMOS and of Sophia",
    legend=(
        f"{TENSORS} tensors of {SHAPE[0]} x {SHAPE[1]}. Ratio: seconds over those of the first row "
        "of the same subject in the same repetition, median and quartiles. Halves: one half of the "
        "tensors on AdamW, the other on the second optimizer (Sophia, or fused AdamW again); "
        "`warm` keeps the first optimizer's state of the others current, `restart` frees it. "
        "State: what the optimizers keep. Temporary: most that a step allocates on top."
    ),
    columns=(
        Column("subject", "subject"),
        Column("optimizer", "optimizer"),
        Column("ratio", "ratio", spread),
        Column("seconds", "a step", seconds),
        Column("state", "state", megabytes),
        Column("temporary", "temporary", megabytes),
    ),
    subjects=tuple(SUBJECTS),
    measure=measure,
)
