"""Best of both: is AMOS as good as the better of its arms, however badly the other is tuned?

python -m examples.amos.best_of_both --preset cpu
python -m examples.amos.best_of_both --task cnn --firsts adamw sgd --arms muon

Appends every run to a file and skips those that are there, so that it can be stopped and gone on
with; then prints the page and writes it beside that file.  ``--tune`` trains each arm alone at the
learning rates of ``presets.GRIDS`` instead, ``--longer`` the first arm for so many times the steps.
"""

import argparse
import itertools
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from examples.amos import run_log
from examples.amos.presets import FIRSTS, GRIDS, LEVELS, LONGER, PRESETS, SECONDS, STRATEGIES
from examples.amos.results import page
from examples.amos.training import Cell, run


def cells(args: argparse.Namespace) -> list[Cell]:
    """All runs that were asked for, seed by seed; the first arm alone once a seed."""
    if args.tune:
        wanted = [
            *(Cell(args.arms[0], f"{lr:g}", "tune-first", 0, args.preset, args.task, first)
              for first in args.firsts for lr in GRIDS.get(first, ())),
            *(Cell(arm, f"{lr:g}", "tune-second", 0, args.preset, args.task)
              for arm in args.arms for lr in GRIDS.get(arm, ())),
        ]  # fmt: skip
    elif args.longer:
        wanted = [
            Cell(args.arms[0], f"{factor:g}", LONGER, seed, args.preset, args.task, first)
            for seed, first, factor in itertools.product(
                range(args.seeds), args.firsts, args.longer
            )
        ]
    else:
        wanted = [
            Cell(arm, level, strategy, seed, args.preset, args.task, first)
            for seed, first, arm, level, strategy in itertools.product(
                range(args.seeds), args.firsts, args.arms, args.levels, args.strategies
            )
        ]
    return list({cell.name: cell for cell in reversed(wanted)}.values())[::-1]


def run_all(wanted: Iterable[Cell], out: Path, device: str) -> None:
    """Run what is not in the file yet, and append it.

    Args:
        wanted: the runs.
        out: the file.
        device: where to train.
    """
    torch.set_num_threads(1)
    for cell in wanted:
        if cell.name in run_log.read(out):
            continue
        started = time.perf_counter()
        result = run(cell, device)
        run_log.append(out, cell.name, result)
        seconds = time.perf_counter() - started
        print(f"{cell.name}  {result['validation']:.4f}  {seconds:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="AMOS and its arms, well and badly tuned.")
    parser.add_argument("--task", choices=list(PRESETS), default="gpt")
    parser.add_argument("--preset", choices=list(PRESETS["gpt"]), default="cpu")
    parser.add_argument("--firsts", nargs="+", choices=FIRSTS, default=["adamw"])
    parser.add_argument("--arms", nargs="+", choices=SECONDS, help="default: all of the task")
    parser.add_argument("--levels", nargs="+", choices=list(LEVELS), default=list(LEVELS))
    parser.add_argument(
        "--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES)
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--longer", nargs="+", type=float)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="default: results-TASK-PRESET.jsonl here")
    args = parser.parse_args()
    if args.preset not in PRESETS[args.task]:
        parser.error(f"task {args.task} has the presets {', '.join(PRESETS[args.task])}")
    args.arms = args.arms or (list(SECONDS) if args.task == "gpt" else ["muon"])
    out = args.out or Path(__file__).parent / f"results-{args.task}-{args.preset}.jsonl"
    run_all(cells(args), out, args.device)
    text = page(out)
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
