"""Fair timing: contestants take turns, and what is reported is medians and quartiles.

On a machine that others use, a clock drifts by more than contestants differ.  So every repetition
runs all of them, one after the other in a rotating order, and ratios are taken within repetitions.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Summary:
    """Median and quartiles."""

    median: float
    low: float
    high: float
    repetitions: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Summary":
        if len(samples) < 2:
            return cls(samples[0], samples[0], samples[0], len(samples))
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high, len(samples))

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def ratio(samples: Sequence[float], baseline: Sequence[float]) -> Summary:
    """Ratios within repetitions."""
    return Summary.of([x / y for x, y in zip(samples, baseline, strict=True)])


def synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and what it returned."""
    synchronize()
    begin = time.perf_counter()
    result = call()
    synchronize()
    return time.perf_counter() - begin, result


def interleaved(
    calls: Mapping[str, Callable[[], Any]], repetitions: int, *, warmups: int = 1
) -> dict[str, list[float]]:
    """Seconds of every call, by repetition; the first ``warmups`` are not counted."""
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(-warmups, repetitions):
        shift = repetition % len(names)
        for name in names[shift:] + names[:shift]:
            seconds, _ = seconds_of(calls[name])
            if repetition >= 0:
                samples[name].append(seconds)
    return samples
