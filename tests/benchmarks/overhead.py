"""What an iteration costs that is not measured, with a profiler attached and without."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

import lipprof
from tests.benchmarks.networks import TokenCrossEntropy
from tests.benchmarks.problems import PROBLEMS, Problem
from tests.benchmarks.sections import Column, Row, Section, Setting, number, seconds, spread
from tests.benchmarks.timing import Summary, interleaved, ratio

ITERATIONS = 400
BARE = "no profiler"


def tiny(_: Path | None, device: str, *, quick: bool) -> Problem:
    """An iteration so short that any overhead shows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).to(device)
    inputs, targets = torch.randn(16, 8, device=device), torch.randint(4, (16,), device=device)
    return Problem("tiny", "MLP 8-16-4, batch 16", model, inputs, targets, TokenCrossEntropy())


SUBJECTS = {"tiny": tiny, "cnn": PROBLEMS["cnn"], "gpt": PROBLEMS["gpt"]}


def measure(setting: Setting, subject: str) -> list[Row]:
    problem = SUBJECTS[subject](setting.data, setting.device, quick=setting.quick)
    setting.say(f"overhead: {subject}, {problem.description}")
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        loops = {BARE: training_step(problem)}
        loops["a second loop without profiler"] = training_step(problem)
        for name, closure in (("attached, loss=", True), ("attached, live step", False)):
            loops[name] = training_step(problem, stack, folder / f"{closure}.h5", closure=closure)
        samples = interleaved(loops, 20 if setting.quick else ITERATIONS, warmups=10)
    for name, values in samples.items():
        extra = [value - bare for value, bare in zip(values, samples[BARE], strict=True)]
        rows.append({
            "problem": subject,
            "data": problem.description,
            "method": name,
            "ratio": ratio(values, samples[BARE]).as_dict(),
            "seconds": Summary.of(values).median,
            "extra_us": 1e6 * Summary.of(extra).median,
        })
    return rows


def training_step(
    problem: Problem,
    stack: ExitStack | None = None,
    path: Path | None = None,
    *,
    closure: bool = False,
) -> Callable[[], None]:
    """An iteration of training; with a stack, under a profiler that never measures."""
    model = copy.deepcopy(problem.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    if stack is not None and path is not None:
        loss = problem.loss if closure else None
        stack.enter_context(
            lipprof.attach(model, optimizer, path, loss=loss, schedule=lambda _: False)
        )

    def step() -> None:
        optimizer.zero_grad()
        problem.loss(model).backward()
        optimizer.step()

    return step


SECTION = Section(
    name="overhead",
    title="An iteration that is not measured",
    legend=(
        "Ratio: seconds over those of the loop without profiler in the same repetition, median and "
        "quartiles; the second such loop shows the noise. Extra: median difference."
    ),
    columns=(
        Column("problem", "problem"),
        Column("method", "loop"),
        Column("ratio", "ratio", spread),
        Column("seconds", "iteration", seconds),
        Column("extra_us", "extra, µs", number),
    ),
    subjects=tuple(SUBJECTS),
    measure=measure,
)
