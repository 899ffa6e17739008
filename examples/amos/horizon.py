"""How long has a trial to be?  Both arms alone from the same start, compared long before the end.

python -m examples.amos.horizon --preset cpu

The first arm alone and every second arm at every level, as in ``best_of_both``, with the probe's
loss on the way.  The page says for each horizon how often a trial of that length from the first
step on would have chosen the arm that is worse in the end, and what that gives away.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from examples.amos import run_log
from examples.amos.presets import LEVELS, PRESETS
from examples.amos.training import Cell, Run
from examples.lipschitz.results import table
from lipprof.advice import Choice, Losses, judge
from lipprof.curvature import ParameterView, displaced, undisturbed

HORIZONS = (10, 20, 30, 40, 50, 60, 80, 100, 150, 200)
PAIRS = (("gpt", "adamw", "muon"), ("gpt", "adamw", "soap"), ("cnn", "adamw", "muon"),
         ("cnn", "sgd", "muon"))  # fmt: skip


def cells(preset: str, seeds: int) -> Iterator[Cell]:
    """All runs; the first arm alone once a seed.

    Yields:
        A run.
    """
    for seed, (task, first, arm) in itertools.product(range(seeds), PAIRS):
        yield Cell(arm, "good", "first", seed, preset, task, first)
        for level in LEVELS:
            yield Cell(arm, level, "second", seed, preset, task, first)


def observed(cell: Cell, device: str) -> dict[str, Any]:
    """Train one arm alone.

    Returns:
        Its validation loss, and by horizon the probe's loss at its parameters and at their average
        over the second half of the way.
    """
    run = Run(cell, device)
    view, path = ParameterView.of(run.task.model, run.optimizer), []
    losses: dict[int, Losses] = {}

    def observe(step: int) -> None:
        if step > HORIZONS[-1]:
            return
        path.append(view.snapshot())
        if step in HORIZONS:
            average = torch.stack(path[step // 2 :]).mean(0)
            with torch.no_grad(), undisturbed(run.task.model, training=False):
                end = float(run.probe_loss(run.task.model))
                with displaced(view, average):
                    losses[step] = Losses(end, float(run.probe_loss(run.task.model)))

    run.train(observe)
    return {"task": cell.task, "first": cell.first, "arm": cell.arm, "level": cell.level,
            "strategy": cell.strategy, "seed": cell.seed, "losses": losses,
            "validation": run.task.validation()}  # fmt: skip


class Pair(NamedTuple):
    """Both arms alone, on the same seed."""

    first: dict[str, Any]
    second: dict[str, Any]

    def gives_away(self, horizon: int, *kinds: str) -> float:
        """What the choice at a horizon costs in the end; the first arm is the incumbent."""
        known = [Losses(*run["losses"][str(horizon)]) for run in self]
        seen = [Losses(*(getattr(losses, kind) for kind in (kinds * 2)[:2])) for losses in known]
        decision = judge(horizon, [""], [1], first=seen[0], second=seen[1], incumbent=Choice.FIRST)
        chosen = self.second if decision.choice[0] == Choice.SECOND else self.first
        return chosen["validation"] - min(run["validation"] for run in self)


def page(path: Path) -> str:
    """Write the page of one file of results, as markdown."""
    runs = list(run_log.read(path).values())
    alone = {
        (run["task"], run["first"], run["seed"]): run for run in runs if run["strategy"] == "first"
    }
    parts = [_ABOUT]
    for task in dict.fromkeys(task for task, *_ in PAIRS):
        pairs = [
            Pair(alone[run["task"], run["first"], run["seed"]], run)
            for run in runs
            if run["strategy"] == "second" and run["task"] == task
        ]
        if not pairs:
            continue
        rows = [
            [str(horizon), *(_lost(pairs, horizon, *kinds) for kinds in _KINDS)]
            for horizon in HORIZONS
            if all(str(horizon) in run["losses"] for pair in pairs for run in pair)
        ]
        header = ["steps", "at the parameters", "at the average", "by both"]
        parts.append(f"## {task}, {len(pairs)} pairs\n\n{table(header, rows)}")
    return "\n\n".join(parts) + "\n"


_ABOUT = (
    "# How long a trial has to be\n\nHow many choose the arm that is worse in the end, and the "
    "validation loss that this gives away, mean over all pairs, in nats; by the probe's loss at "
    "the parameters, at their average over the second half, and by both, as trials decide."
)
_KINDS = (("end",), ("average",), ("end", "average"))


def _lost(pairs: list[Pair], horizon: int, *kinds: str) -> str:
    given_away = np.array([pair.gives_away(horizon, *kinds) for pair in pairs])
    return f"{(given_away > 0).sum()}: {given_away.mean():.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a trial has to be.")
    parser.add_argument("--preset", choices=list(PRESETS["gpt"]), default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="default: results-horizon-PRESET.jsonl here")
    args = parser.parse_args()
    out = args.out or Path(__file__).parent / f"results-horizon-{args.preset}.jsonl"
    torch.set_num_threads(1)
    for cell in cells(args.preset, args.seeds):
        name = f"{cell.task}-{cell.first}-{cell.name}"
        if name not in run_log.read(out):
            run_log.append(out, name, observed(cell, args.device))
            print(name, flush=True)
    text = page(out)
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
