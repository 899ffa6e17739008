"""The page of results: every strategy in every cell, and whether AMOS's trials keep the promise.

python -m examples.amos.results examples/amos/results-gpt-cpu.jsonl

A number is the mean validation loss over seeds, behind it the smallest and the largest.
Differences are of paired seeds.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.amos import run_log
from examples.amos.presets import FIRSTS, LEVELS, LONGER, PRESETS, SECONDS, STRATEGIES, TUNING
from examples.lipschitz.results import table

Losses = dict[int, float]  # by seed

ARMS = ("first", "second")
STATIC = ("first", "second", "random", "shallow", "deep")
INVERTED = "inverted"
CONTROLS = ("random", INVERTED)
DECIDING = ("contest", "calibrated", "descent", "greedy", "newton-safe")
TO_BETTER, TO_STATIC = 0.02, 0.01
AFFORDABLE = 0.05  # of a run without decisions


class Where(NamedTuple):
    """A cell: both arms, and how the second is tuned."""

    first: str
    arm: str
    level: str


class Results:
    """All runs of a file."""

    def __init__(self, path: Path) -> None:
        self.runs = list(run_log.read(path).values())

    def runs_of(self, *strategies: str) -> list[dict[str, Any]]:
        """All runs of some strategies."""
        return [run for run in self.runs if run["strategy"] in strategies]

    def losses(self, where: Where, strategy: str) -> Losses:
        """Validation loss by seed; empty: not run."""
        if strategy == INVERTED:
            return self._inverted(where)
        return {run["seed"]: run["validation"] for run in self.runs_where(where, strategy)}

    def _inverted(self, where: Where) -> Losses:
        """The loser of every trial, which is bit for bit the other arm alone."""
        alone = {name: self.losses(where, name) for name in ARMS}
        others = {
            run["seed"]: alone["second" if run["winner"] == "first" else "first"]
            for run in self.runs_where(where, "contest")
        }
        return {seed: other[seed] for seed, other in others.items() if seed in other}

    def runs_where(self, where: Where, strategy: str) -> list[dict[str, Any]]:
        """All runs of a cell by a strategy."""
        return [
            run
            for run in self.runs_of(strategy)
            if run["first"] == where.first
            and (strategy == "first" or (run["arm"], run["level"]) == where[1:])
        ]

    @property
    def cells(self) -> list[Where]:
        """Where AMOS's trials were run."""
        there = {Where(r["first"], r["arm"], r["level"]) for r in self.runs_of("contest")}
        every = (Where(*names) for names in _product())
        return [where for where in every if where in there]


def _product() -> Iterator[tuple[str, str, str]]:
    return ((f, a, x) for f in FIRSTS for a in SECONDS for x in LEVELS)


def page(path: Path) -> str:
    """Write the page of one file of results, as markdown."""
    results = Results(path)
    if not results.runs:
        return "Nothing was run yet.\n"
    parts = [
        _what_ran(results),
        _tuning(results),
        _losses(results),
        _claims(results),
        _costs(results),
        _equal_time(results),
        _decisions(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what_ran(results: Results) -> str:
    one = results.runs[0]
    seeds = sorted({run["seed"] for run in results.runs})
    return (
        f"# Best of both: {one['task']}, preset {one['preset']}\n\n"
        f"{one['parameters']:,} parameters, {one['data']}, "
        f"{PRESETS[one['task']][one['preset']].describe}; seeds {', '.join(map(str, seeds))}, "
        "fewer in some cells. Validation losses, in nats: the mean over seeds, with the smallest "
        "and the largest."
    )


def _tuning(results: Results) -> str:
    tried: dict[str, dict[float, float]] = {}
    for run in results.runs_of(*TUNING):
        arm = run["first"]
        if run["strategy"] == "tune-second":
            arm = f"{run['arm']}, the rest on {run['first']} at {run['first_lr']:g}"
        tried.setdefault(arm, {})[float(run["level"])] = run["validation"]
    if not tried:
        return ""
    rows = [
        [arm, ", ".join(f"{lr:g}: {known[lr]:.3f}" for lr in sorted(known))]
        for arm, known in tried.items()
    ]
    return (
        "## Learning rates\n\nEach arm alone on seed 0, all that was tried; the best is *good*.\n\n"
        + table(["arm", "learning rate: loss"], rows)
    )


def _losses(results: Results) -> str:
    run = [name for name in STRATEGIES if results.runs_of(name)]
    run += [INVERTED] if "contest" in run else []
    rows = [
        [*_named(where), *(spread(results.losses(where, name)) for name in run)]
        for where in results.cells
    ]
    header = ["arms", "lr of the second", *run]
    return (
        "## Validation loss\n\n*inverted* is the loser of the trial: the other arm alone.\n\n"
        + table(header, rows)
    )


def _named(where: Where) -> tuple[str, str]:
    return f"{where.first}, {where.arm}", where.level


class Claim(NamedTuple):
    """How far a strategy is above what it is held against, by seed, and how far it may be."""

    other: str
    pairs: np.ndarray
    margin: float

    @property
    def holds(self) -> bool:
        """Whether it does for the mean."""
        return bool(self.pairs.mean() <= self.margin)

    @property
    def text(self) -> str:
        """The mean, to what, over how many seeds, and the verdict."""
        verdict = "holds" if self.holds else "**fails**"
        return f"{self.pairs.mean():+.3f} to {self.other} ({len(self.pairs)}): {verdict}"


def claims(losses: dict[str, Losses], strategy: str) -> dict[str, Claim]:
    """What is claimed of a strategy in a cell; without what cannot be compared."""

    def to(other: str, margin: float) -> Claim:
        return Claim(other, paired(losses[strategy], losses.get(other, {})), margin)

    every = {
        f"≤ better arm + {TO_BETTER}": to(best(losses, ARMS), TO_BETTER),
        f"≤ best static + {TO_STATIC}": to(best(losses, STATIC), TO_STATIC),
        f"≤ static best on the other seeds + {TO_STATIC}": Claim(
            "it", held_out(losses, strategy), TO_STATIC
        ),
        **{f"ahead of {control}": to(control, 0.0) for control in CONTROLS},
    }
    return {title: claim for title, claim in every.items() if len(claim.pairs)}


def held_out(losses: dict[str, Losses], strategy: str) -> np.ndarray:
    """Differences to the static assignment that is best on the other seeds, where there are any."""
    differences = []
    for seed, loss in losses[strategy].items():
        others = {
            name: {s: v for s, v in losses[name].items() if s != seed}
            for name in STATIC
            if seed in losses[name]
        }
        chosen = best(others, tuple(others))
        if chosen:
            differences.append(loss - losses[chosen][seed])
    return np.array(differences)


def _claims(results: Results) -> str:
    rows, counted = [], []
    found: dict[str, list[tuple[Where, dict[str, Claim]]]] = {}
    for where in results.cells:
        losses = {name: results.losses(where, name) for name in (*STRATEGIES, INVERTED)}
        for strategy in DECIDING:
            if losses[strategy]:
                found.setdefault(strategy, []).append((where, claims(losses, strategy)))
    titles = list(dict.fromkeys(t for cells in found.values() for _, each in cells for t in each))
    for strategy, cells in found.items():
        for where, each in cells:
            told = [each[title].text if title in each else "not run" for title in titles]
            rows.append([*_named(where), strategy, *told])
        counted.append([strategy, *(_counted(title, cells) for title in titles)])
    return (
        "## Claims\n\nIn how many cells each holds, and the cell where it is furthest from it.\n\n"
        + table(["by", *titles], counted)
        + "\n\nMean paired difference to the one named (pairs), and whether the claim holds for "
        "that mean.\n\n" + table(["arms", "lr of the second", "by", *titles], rows)
    )


def _counted(title: str, cells: list[tuple[Where, dict[str, Claim]]]) -> str:
    known = {where: each[title] for where, each in cells if title in each}
    if not known:
        return "not run"
    worst = max(known, key=lambda where: known[where].pairs.mean())
    holding = sum(claim.holds for claim in known.values())
    where = " ".join((*_named(worst),))
    return f"{holding} of {len(known)}; {known[worst].pairs.mean():+.3f} ({where})"


def _costs(results: Results) -> str:
    rows = []
    for strategy in DECIDING:
        runs = results.runs_of(strategy)
        if not runs:
            continue
        rows.append([
            strategy,
            f"{np.median([run['gradients'] / steps_of(run) for run in runs]):.2f}",
            f"{np.median([run['hvps'] / steps_of(run) for run in runs]):.2f}",
            f"{share:.0%}: {'holds' if share <= AFFORDABLE else '**fails**'}"
            if np.isfinite(share := time_share(runs))
            else "not timed",
        ])
    header = ["by", "gradients", "Hessian-vector products", f"time of training ≤ {AFFORDABLE:.0%}"]
    return (
        "## What deciding costs\n\nPer step of training, and as a share of the time that training "
        "takes without; medians over runs.\n\n" + table(header, rows)
    )


def _equal_time(results: Results) -> str:
    rows = []
    timed = [run for run in results.runs if run["cpu_s"] is not None]
    for first in FIRSTS:
        here = [run for run in timed if run["first"] == first]
        alone = [run for run in here if run["strategy"] == "first"]
        longer = [run for run in here if run["strategy"] == LONGER]
        for level in sorted({run["level"] for run in longer}, key=float):
            rows.append([
                f"{first} alone, {level} times the steps",
                *_time_and_loss([run for run in longer if run["level"] == level], alone),
            ])
        for arm in SECONDS if longer else ():
            where = ("contest", arm, "good")
            ours = [run for run in here if (run["strategy"], run["arm"], run["level"]) == where]
            if ours:
                rows.append([f"{first} and {arm}, a trial", *_time_and_loss(ours, alone)])
    header = ["what", "time, in runs of the first arm alone", "validation loss"]
    timing = "Processor time of the runs that were timed one after the other on an idle machine."
    return f"## Equal time\n\n{timing}\n\n" + table(header, rows) if rows else ""


def _time_and_loss(runs: list[dict[str, Any]], alone: list[dict[str, Any]]) -> tuple[str, str]:
    cpu = {run["seed"]: run["cpu_s"] for run in alone}
    ratios = [run["cpu_s"] / cpu[run["seed"]] for run in runs if run["seed"] in cpu]
    losses = {run["seed"]: run["validation"] for run in runs}
    return f"{np.median(ratios):.2f}", spread(losses)


def steps_of(run: dict[str, Any]) -> int:
    """Of a run."""
    return PRESETS[run["task"]][run["preset"]].steps


def time_share(runs: list[dict[str, Any]]) -> float:
    """Time of deciding over the time of the rest, median over runs; NaN: none was timed."""
    shares = [
        run["decision_s"] / (run["seconds"] - run["decision_s"])
        for run in runs
        if run["seconds"] is not None
    ]
    return float(np.median(shares)) if shares else np.nan


def _decisions(results: Results) -> str:
    rows = []
    for run in results.runs_of("contest", "calibrated"):
        told = run["reason"] or "training ended before the trial"
        told = told.removeprefix("in a trial, the loss went to ")
        told = told.replace(" optimizer,", "; ").replace("  ", " ")
        where = Where(run["first"], run["arm"], run["level"])
        rows.append([*_named(where), run["strategy"], str(run["seed"]), run["winner"], told])
    header = ["arms", "lr of the second", "by", "seed", "who won", "the loss went to"]
    return "## What decided\n\n" + table(header, rows)


def paired(one: Losses, other: Losses) -> np.ndarray:
    """Differences of the seeds that both have."""
    return np.array([one[seed] - other[seed] for seed in one if seed in other])


def best(losses: dict[str, Losses], names: tuple[str, ...]) -> str:
    """The strategy with the lowest mean over seeds; empty where none was run."""
    known = {name: np.mean(list(losses[name].values())) for name in names if losses[name]}
    return min(known, key=lambda name: known[name]) if known else ""


def spread(losses: Losses) -> str:
    """Mean, with the smallest and the largest where there are several."""
    if not losses:
        return "-"
    values = list(losses.values())
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the page of results.")
    parser.add_argument("file", type=Path)
    path = parser.parse_args().file
    text = page(path)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
