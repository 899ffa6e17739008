"""Chunks and eigenspaces against tensors: what switches together, under the same rule.

python -m examples.amos.units --preset cpu

AdamW and Sophia-G on the CNN, with tensors, modules and chunks as units of AMOS by the rule
newton-safe on Sophia's own diagonal; and AdamW with second-order steps in eigenspaces, by the same
rule.  Muon cannot be in it: it takes whole matrices.
"""

import argparse
from pathlib import Path

import numpy as np

from examples.amos.best_of_both import run_all
from examples.amos.presets import PRESETS, UNIT_STRATEGIES
from examples.amos.results import Results, paired, spread, steps_of, time_share
from examples.amos.training import Cell
from examples.lipschitz.results import table
from lipprof.curvature import Units

TASK, ARM = "cnn", "sophia-g"
CHUNK = 256  # parameters
UNITS: tuple[Units, ...] = ("tensor", "module", CHUNK)

ROWS: dict[tuple[str, Units], str] = {
    ("first", "tensor"): "AdamW alone",
    ("second", "tensor"): "Sophia-G alone",
    ("own", "tensor"): "tensors",
    ("own", "module"): "modules",
    ("own", CHUNK): f"chunks of {CHUNK}",
    ("half", "tensor"): "half of the tensors by L",
    ("half", "module"): "half of the modules by L",
    ("half", CHUNK): "half of the chunks by L",
    ("random", "tensor"): "random half of the tensors",
    ("random", CHUNK): "random half of the chunks",
    ("elmo", "tensor"): "eigenspaces, ELMO",
    ("fosi", "tensor"): "eigenspaces, FOSI",
}


def page(path: Path) -> str:
    """Write the page of one file of results, as markdown."""
    results = Results(path)
    rows = [_row(results, strategy, units) for strategy, units in ROWS]
    header = [
        "units",
        "validation loss",
        "beside AdamW alone",
        "share on the second arm",
        "gradients per step",
        "products per step",
        "time",
    ]
    about = "\n".join(f"* {text}." for text in UNIT_STRATEGIES.values())
    return (
        "# Units: the same rule over tensors, modules, chunks and eigenspaces\n\n"
        "Losses in nats, mean over seeds with the smallest and the largest; differences of paired "
        "seeds; the share of units, or of eigenspaces, at the end; the cost of deciding, where "
        f"Sophia's own diagonal is not counted. By:\n\n{about}\n\n" + table(header, rows) + "\n"
    )


def _row(results: Results, strategy: str, units: Units) -> list[str]:
    runs = [run for run in results.runs_of(strategy) if run["units"] == units]
    if not runs:
        return [ROWS[strategy, units], *["-"] * 6]
    losses = {run["seed"]: run["validation"] for run in runs}
    alone = {run["seed"]: run["validation"] for run in results.runs_of("first")}

    def middle(of: str) -> float:
        return float(np.mean([run[of] for run in runs]))

    def per_step(of: str) -> str:
        return f"{np.mean([run[of] / steps_of(run) for run in runs]):.2f}"

    beside = paired(losses, alone)
    return [
        ROWS[strategy, units],
        spread(losses),
        f"{beside.mean():+.3f} ({len(beside)})" if len(beside) else "-",
        f"{middle('second_share'):.0%}",
        per_step("gradients"),
        per_step("hvps"),
        f"{time_share(runs):.0%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Tensors, modules, chunks and eigenspaces.")
    parser.add_argument("--preset", choices=list(PRESETS[TASK]), default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="default: results-units-PRESET.jsonl here")
    args = parser.parse_args()
    out = args.out or Path(__file__).parent / f"results-units-{args.preset}.jsonl"
    wanted = [
        Cell(ARM, "good", strategy, seed, args.preset, TASK, units=units)
        for seed in range(args.seeds)
        for strategy, units in ROWS
    ]
    run_all(wanted, out, args.device)
    text = page(out)
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
