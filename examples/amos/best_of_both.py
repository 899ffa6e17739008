"""Best of both: is AMOS as good as the better of its arms, however badly the other is tuned?

python -m examples.amos.best_of_both --preset cpu

Writes one JSON file a run and skips those that are there, so that it can be stopped and gone on
with; then prints the page and writes it beside them.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch

from examples.amos.presets import LEVELS, PRESETS, SECONDS, STRATEGIES
from examples.amos.results import page
from examples.amos.training import Cell, run


def cells(args: argparse.Namespace) -> list[Cell]:
    """All runs that were asked for, seed by seed; the first arm alone once a seed."""
    wanted, files = [], set()
    for seed, arm, level, strategy in itertools.product(
        range(args.seeds), args.arms, args.levels, args.strategies
    ):
        cell = Cell(arm, level, strategy, seed, args.preset)
        if cell.file not in files:
            files.add(cell.file)
            wanted.append(cell)
    return wanted


def main() -> None:
    parser = argparse.ArgumentParser(description="AMOS and its arms, well and badly tuned.")
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--arms", nargs="+", choices=list(SECONDS), default=list(SECONDS))
    parser.add_argument("--levels", nargs="+", choices=list(LEVELS), default=list(LEVELS))
    parser.add_argument(
        "--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES)
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="default: results-PRESET beside this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = args.out or Path(__file__).parent / f"results-{args.preset}"
    out.mkdir(parents=True, exist_ok=True)
    for cell in cells(args):
        path = out / cell.file
        if path.exists():
            continue
        started = time.perf_counter()
        result = run(cell, args.device)
        path.write_text(json.dumps(result, indent=1), encoding="utf-8")
        seconds = time.perf_counter() - started
        print(f"{cell.file}  {result['validation']:.4f}  {seconds:.0f} s", flush=True)
    text = page(out)
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
