"""Train a scenario and measure L⁺ and L⁻ along the way, seed by seed.

python -m examples.lipschitz.run cnn-cifar10 --preset cpu --seeds 3 --out results

Writes a run file for every seed (``lipprof report results/cnn-cifar10-arc-seed0.h5``), and beside
it a JSON file that says what was trained.  ``python -m examples.lipschitz.results results`` reads
both.
"""

import argparse
import json
import time
from pathlib import Path

import lipprof
from examples.lipschitz.data import FOLDERS
from examples.lipschitz.presets import OPTIMIZERS, PRESETS, RIVAL_LR, build_optimizer
from examples.lipschitz.scenarios import SCENARIOS
from examples.lipschitz.training import Experiment, Task, closure_for

ESTIMATORS = ("drift", "eigenarc", "exact")


def train(
    experiment: Experiment,
    optimizer_name: str,
    seed: int,
    path: Path,
    *,
    rival_lr: float = RIVAL_LR,
) -> None:
    """Train, measure on one fixed batch, and write the two files.

    Args:
        experiment: what to train.
        optimizer_name: see ``presets.build_optimizer``.
        seed: of the network and of the images.
        path: of the run file.
        rival_lr: see ``presets.build_optimizer``.
    """
    task, preset = Task(experiment, seed), experiment.preset
    optimizer = build_optimizer(optimizer_name, task.model, preset, rival_lr=rival_lr)
    with lipprof.attach(
        task.model,
        optimizer,
        path,
        loss=task.loss,
        profile="paper-lipschitz",
        every=preset.every,
        tol=preset.tol,
        max_matvecs=preset.max_matvecs,
        lipschitz=ESTIMATORS,
        superiority=True,
        stability=False,
        strict=True,
    ) as prof:
        for loss in task.step_losses():
            optimizer.step(closure_for(optimizer, task.model, loss))
    about = {
        "scenario": experiment.name,
        "optimizer": optimizer_name,
        "seed": seed,
        "origin": task.images.origin,
        "images": task.size.images,
        "parameters": prof.view.n,
    }
    path.with_suffix(".json").write_text(json.dumps(about))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure L+ and L- along a training run.")
    parser.add_argument("scenario", choices=[*SCENARIOS, "all"])
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="arc")
    parser.add_argument("--rival-lr", type=float, default=RIVAL_LR)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="fewer or more than the preset's")
    parser.add_argument("--missing", action="store_true", help="leave out seeds that are there")
    parser.add_argument("--data", type=Path, help="folder of the images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args()
    folders = FOLDERS if args.data is None else (args.data,)
    for name in SCENARIOS if args.scenario == "all" else [args.scenario]:
        preset = PRESETS[args.preset].paced(args.optimizer, args.steps)
        experiment = Experiment(name, preset, folders, args.device)
        for seed in range(args.seeds):
            started = time.perf_counter()
            path = args.out / f"{name}-{args.optimizer}-seed{seed}.h5"
            if args.missing and path.with_suffix(".json").is_file():
                continue
            train(experiment, args.optimizer, seed, path, rival_lr=args.rival_lr)
            print(f"{path}  {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
