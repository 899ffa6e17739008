"""Which trial foretells who is better in the end: when, how long, from where, and by which loss?

python -m examples.amos.plans --seeds 3

Trains both arms of every cell of the character GPT through trials of several plans, appends what
they ended at to results-plans-cpu.jsonl, and holds the arm that each plan would choose against
the arms alone in results-gpt-cpu.jsonl.  What is there already is not run again.
"""

import argparse
import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from examples.amos import run_log
from examples.amos.presets import LEVELS
from examples.amos.results import TO_BETTER, Results, Where
from examples.amos.training import Cell, Run
from examples.lipschitz.results import table
from lipprof.advice import Choice

HERE = Path(__file__).parent
ARMS = ("muon", "soap", "sophia-g", "sgd")
CONSTANT, DECAYING = "constant", "decaying"


class Plan(NamedTuple):
    """A trial: its first iteration, its length, and what becomes of the learning rate in it."""

    start: int
    period: int
    rate: str = CONSTANT
    common: bool = True  # from where the first arm is; else each from where it has come alone

    @property
    def name(self) -> str:
        """In words."""
        origin = "common ground" if self.common else "side by side"
        return f"{origin}, {self.start} to {self.start + self.period}, {self.rate}"


PLANS = [
    *(Plan(*plan) for plan in itertools.product((20, 40, 60), (20, 40), (CONSTANT, DECAYING))),
    *(Plan(start, 20, rate, False) for start in (40, 60, 80) for rate in (CONSTANT, DECAYING)),
]
JUDGED = {
    "end": "at the parameters",
    "average": "at their average over the second half",
    "lower": "the lower of the two",
    "online": "mean of the training batches of the second half",
}


class Branch:
    """A run that can go back to where it was."""

    def __init__(self, cell: Cell, batches: list[Any]) -> None:
        self._run, self._batches, self._done = Run(cell), batches, 0
        self._run.optimizer.await_recommendations()
        self._lr = [group["initial_lr"] for group in self._run.optimizer.param_groups]

    def state(self) -> Any:
        """What ``go_back`` needs."""
        parts = self._run.task.model, self._run.optimizer
        return copy.deepcopy([part.state_dict() for part in parts]), self._done

    def go_back(self, state: Any, side: Choice) -> None:
        """Go on from a state, with all that may switch on one side."""
        (model, optimizer), self._done = copy.deepcopy(state)
        self._run.task.model.load_state_dict(model)
        self._run.optimizer.load_state_dict(optimizer)
        self._run.optimizer._assignment.move_all(side)

    def step(self, decay: float = 1.0) -> float:
        """Take a step at the scheduled learning rate times ``decay``; return the batch's loss."""
        for group, lr in zip(self._run.optimizer.param_groups, self._lr, strict=True):
            group["lr"] = lr * self._run.rate(self._done) * decay
        self._done += 1
        return self._run.step(self._batches[self._done - 1])

    @torch.no_grad()
    def trial(self, plan: Plan) -> dict[str, float]:
        """Train through a trial; return the losses of ``JUDGED``."""
        parameters, half = list(self._run.task.model.parameters()), plan.period // 2
        online, total = [], [torch.zeros_like(p) for p in parameters]
        for taken in range(plan.period):
            left = 1 - (taken + 0.5) / plan.period
            with torch.enable_grad():
                online.append(self.step(left if plan.rate == DECAYING else 1.0))
            if taken >= half:
                torch._foreach_add_(total, parameters)
        end = float(self._run.probe_loss(self._run.task.model))
        for p, added in zip(parameters, total, strict=True):
            p.copy_(added / half)
        average = float(self._run.probe_loss(self._run.task.model))
        online = float(np.mean(online[half:]))
        return {"end": end, "average": average, "lower": min(end, average), "online": online}


def measure(arm: str, level: str, seed: int, side: Choice) -> dict[str, dict[str, float]]:
    """Losses of one side after the trial of every plan."""
    cell = Cell(arm, level, "random", seed)
    task = Run(cell).task
    last = max(plan.start + plan.period for plan in PLANS)
    branch = Branch(cell, [task.batch() for _ in range(last)])
    starts = sorted({plan.start for plan in PLANS})
    fresh = branch.state()
    origins = {}
    for common in (True, False):
        branch.go_back(fresh, Choice.FIRST if common else side)
        for iteration in range(starts[-1] + 1):
            if iteration in starts:
                origins[common, iteration] = branch.state()
            branch.step()
    losses = {}
    for plan in PLANS:
        branch.go_back(origins[plan.common, plan.start], side)
        losses[plan.name] = branch.trial(plan)
    return losses


def wanted(seeds: int) -> Iterator[tuple[str, str, int, Choice]]:
    """All runs; the first arm is the same in all cells."""
    for seed in range(seeds):
        yield ARMS[0], "good", seed, Choice.FIRST
        for arm, level in itertools.product(ARMS, LEVELS):
            yield arm, level, seed, Choice.SECOND


def page(path: Path, alone: Results) -> str:
    """For every plan and loss: what the arms that it chooses lose to the better ones."""
    runs = list(run_log.read(path).values())
    first = {run["seed"]: run["losses"] for run in runs if run["side"] == Choice.FIRST}
    rows = []
    for plan in PLANS:
        told = []
        for judged in JUDGED:
            regret: dict[Where, list[float]] = {}
            for run in runs:
                if run["side"] == Choice.FIRST:
                    continue
                where = Where("adamw", run["arm"], run["level"])
                ends = [alone.losses(where, name)[run["seed"]] for name in ("first", "second")]
                trial = [side[plan.name][judged] for side in (first[run["seed"]], run["losses"])]
                chosen = ends[1] if trial[1] < trial[0] else ends[0]
                regret.setdefault(where, []).append(chosen - min(ends))
            means = [float(np.mean(each)) for each in regret.values()]
            failing = sum(mean > TO_BETTER for mean in means)
            told.append(f"{failing} of {len(means)}, {np.mean(means):.3f}")
        rows.append([plan.name, *told])
    return (
        f"# Which trial\n\nCells in which the chosen arm ends more than {TO_BETTER} above the "
        "better one (mean over seeds), and the mean over cells. Judged by the loss "
        + "; ".join(f"*{name}*: {words}" for name, words in JUDGED.items())
        + ".\n\n"
        + table(["trial", *JUDGED], rows)
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Which trial foretells the better arm?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results-plans-cpu.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for arm, level, seed, side in wanted(args.seeds):
        name = f"{arm}-{level}-seed{seed}-{side.label}".replace(" ", "-")
        if name in run_log.read(args.out):
            continue
        losses = measure(arm, level, seed, side)
        run = {"arm": arm, "level": level, "seed": seed, "side": int(side), "losses": losses}
        run_log.append(args.out, name, run)
        print(name, flush=True)
    text = page(args.out, Results(HERE / "results-gpt-cpu.jsonl"))
    args.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
