"""The page of results: every strategy in every cell, and whether AMOS's trials keep the promise.

python -m examples.amos.results examples/amos/results-cpu

A number is the mean validation loss over seeds, behind it the smallest and the largest.
Differences are of paired seeds.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from examples.amos.presets import LEVELS, PRESETS, SECONDS, STRATEGIES
from examples.lipschitz.results import table

Losses = dict[int, float]  # by seed

ARMS = ("first", "second")
STATIC = ("first", "second", "random", "shallow", "deep")
TO_BETTER, TO_STATIC = 0.02, 0.01


class Results:
    """All runs of a folder."""

    def __init__(self, folder: Path) -> None:
        self.runs = [
            json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))
        ]

    def losses(self, arm: str, level: str, strategy: str) -> Losses:
        """Validation loss by seed; empty: not run."""
        return {run["seed"]: run["validation"] for run in self._of(arm, level, strategy)}

    def runs_of(self, strategy: str) -> list[dict[str, Any]]:
        """All runs of a strategy."""
        return [run for run in self.runs if run["strategy"] == strategy]

    def _of(self, arm: str, level: str, strategy: str) -> list[dict[str, Any]]:
        return [
            run
            for run in self.runs_of(strategy)
            if strategy == "first" or (run["arm"], run["level"]) == (arm, level)
        ]

    @property
    def cells(self) -> list[tuple[str, str]]:
        """Second arm and level, where AMOS's trials were run."""
        there = {(run["arm"], run["level"]) for run in self.runs_of("contest")}
        return [(arm, level) for arm in SECONDS for level in LEVELS if (arm, level) in there]


def page(folder: Path) -> str:
    """Write the page of one folder of results, as markdown."""
    results = Results(folder)
    if not results.runs:
        return "Nothing was run yet.\n"
    parts = [_what_ran(results), _losses(results), _claims(results), _decisions(results)]
    return "\n\n".join([*parts, _missing(results)]) + "\n"


def _what_ran(results: Results) -> str:
    one = results.runs[0]
    seeds = sorted({run["seed"] for run in results.runs})
    steps = PRESETS[one["preset"]].steps
    extra = [run["extra"] / steps for run in results.runs_of("contest")]
    cost = f" Trials evaluated {np.median(extra):.0%} more gradients (median)." if extra else ""
    return (
        f"# Best of both: preset {one['preset']}\n\n"
        f"A character GPT of {one['parameters']:,} parameters on {one['text']}; seeds "
        f"{', '.join(map(str, seeds))}, fewer in some cells. First arm AdamW.{cost}"
    )


def _losses(results: Results) -> str:
    rows = [
        [arm, level, *(spread(results.losses(arm, level, name)) for name in STRATEGIES)]
        for arm, level in results.cells
    ]
    return "## Validation loss\n\n" + table(["second arm", "lr", *STRATEGIES], rows)


def _claims(results: Results) -> str:
    rows = []
    for arm, level in results.cells:
        losses = {name: results.losses(arm, level, name) for name in STRATEGIES}
        contest = losses["contest"]
        better, static = best(losses, ARMS), best(losses, STATIC)
        rows.append([
            arm,
            level,
            _claim(contest, losses, better, TO_BETTER),
            _claim(contest, losses, static, TO_STATIC),
            *(_claim(contest, losses, control, 0.0) for control in ("random", "inverted")),
        ])
    header = [
        "second arm",
        "lr",
        f"≤ better arm + {TO_BETTER}",
        f"≤ best static + {TO_STATIC}",
        "ahead of random",
        "ahead of inverted",
    ]
    return (
        "## Claims\n\nMean paired difference of AMOS by trial periods to the one named, and "
        "whether the claim holds for that mean.\n\n" + table(header, rows)
    )


def _claim(contest: Losses, losses: dict[str, Losses], other: str, margin: float) -> str:
    pairs = paired(contest, losses.get(other, {}))
    if not len(pairs):
        return "not run"
    verdict = "holds" if pairs.mean() <= margin else "**fails**"
    return f"{pairs.mean():+.3f} to {other} ({len(pairs)}): {verdict}"


def _decisions(results: Results) -> str:
    rows = []
    for run in results.runs_of("contest"):
        told = "; ".join(f"{iteration}: {reason}" for iteration, reason in run["decisions"])
        told = told.replace("in a trial, the loss went to ", "").replace(" optimizer", "")
        rows.append([run["arm"], run["level"], str(run["seed"]), told])
    return "## What decided\n\n" + table(["second arm", "lr", "seed", "trials"], rows)


def _missing(results: Results) -> str:
    gone = [f"{a} {x}" for a in SECONDS for x in LEVELS if (a, x) not in results.cells]
    return f"Not run: {', '.join(gone) if gone else 'nothing'}."


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
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    text = page(folder)
    folder.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
