"""The peak of memory above the model's, while an engine is built and gives one product."""

import gc
from collections.abc import Callable
from typing import Any

import torch

from tests.benchmarks.engines import ENGINES, closure_hessian, gradient, operator_of, reason_of
from tests.benchmarks.problems import PROBLEMS, Problem
from tests.benchmarks.sections import Column, Row, Section, Setting, megabytes, number
from tests.linalg.allocations import peak_memory

PREDICTED = {"lipprof, retained graph": ("retained",), "lipprof, traced": ("retained", "traced")}
"""Backends whose products are tried while one is built: a trace is compared with a graph."""

NO_LIMIT = 1 << 60  # makes lipprof predict


def measure(setting: Setting, subject: str) -> list[Row]:
    problem = PROBLEMS[subject](setting.data, setting.device, quick=setting.quick)
    setting.say(f"memory: {subject}, {problem.description}")
    vector = torch.randn(problem.n, generator=torch.Generator().manual_seed(0)).to(setting.device)
    gradient(problem)
    unit = peak_bytes(lambda: gradient(problem), setting.device)
    rows: list[Row] = [{"method": "gradient", "bytes": unit, "gradients": 1.0}]
    for engine in ENGINES:
        row: Row = {"method": engine.name}
        rows.append(row)
        copied = problem.copied()
        try:
            peak = peak_bytes(lambda e=engine, p=copied: e.ready(p)(vector), setting.device)
            row |= {"bytes": peak, "gradients": peak / unit}
            if engine.name in PREDICTED:
                row["predicted"] = _predicted(copied, PREDICTED[engine.name])
        except Exception as error:  # of any kind: an engine that does not apply says so
            row["note"] = reason_of(error)
    return [{"problem": subject, "data": problem.description, **row} for row in rows]


def peak_bytes(call: Callable[[], Any], device: str) -> int:
    """Most bytes that were allocated at a time, temporaries within operators included."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with peak_memory() as peak:
        call()
    return peak.bytes


def _predicted(problem: Problem, tried: tuple[Any, ...]) -> int | None:
    hessian = closure_hessian(problem, tried[-1], memory_limit=NO_LIMIT)
    operator_of(problem, hessian)
    return max(hessian.choice.bytes[name] for name in tried) if hessian.choice else None


SECTION = Section(
    name="memory",
    title="Memory of a Hessian-vector product",
    legend=(
        "Peak of what is allocated above model and batch while the engine is built and gives one "
        "product, and the same over the peak of loss and gradient. Predicted: what lipprof says "
        "before it allocates anything."
    ),
    columns=(
        Column("problem", "problem"),
        Column("method", "method"),
        Column("bytes", "peak", megabytes),
        Column("gradients", "gradients", number),
        Column("predicted", "predicted", megabytes),
        Column("note", "note"),
    ),
    subjects=tuple(PROBLEMS),
    measure=measure,
)
