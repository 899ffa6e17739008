"""Figure 7: FOSI on top of SGD and of Adam, on an autoencoder and on classifiers.

python -m examples.lipschitz.figure7 --preset cpu --seeds 3 --out results/figure7

FOSI takes Newton's step γ/|λ| along the eigenvectors that the profiler lends it and leaves the rest
to its base.  The paper finds that this helps the classifier and not the autoencoder.  All four have
the same number of steps; eigenpairs come on top.  Prints and writes ``figure7.md``.
"""

import argparse
import itertools
import json
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from torch.optim import Optimizer

import lipprof
from examples.lipschitz.data import FOLDERS
from examples.lipschitz.presets import OPTIMIZERS, PRESETS
from examples.lipschitz.results import spread, table
from examples.lipschitz.training import Experiment, Task, closure_for

NETWORKS = ("autoencoder-mnist", "cnn-mnist", "resnet18-mnist")
EIGENPAIRS = 10  # the largest, as in FOSI's own experiments (Sivan et al. 2023)
LOOK_EVERY = 20  # steps between looks at the spectrum, and before the first, as there


def losses(experiment: Experiment, name: str, seed: int, path: Path) -> list[float]:
    """Train and tell the loss before each step, on the step's own batch.

    Args:
        experiment: what to train.
        name: ``sgd``, ``adam``, ``fosi-sgd`` or ``fosi-adam``.
        seed: of the network and of the images.
        path: of the run file that FOSI's eigenpairs go to.

    Returns:
        One loss per step; the last is not finite, and the run shorter, where it diverged.
    """
    task, preset = Task(experiment, seed), experiment.preset
    base = OPTIMIZERS[name.removeprefix("fosi-")](preset)
    parameters = task.model.named_parameters()
    fosi = name.startswith("fosi-")
    optimizer: Optimizer = lipprof.FOSI(parameters, base) if fosi else base(parameters)
    profiled = nullcontext()
    if fosi:
        profiled = lipprof.attach(
            task.model,
            optimizer,
            path,
            loss=task.loss,
            every=LOOK_EVERY,
            wait=LOOK_EVERY,
            top=EIGENPAIRS,
            bottom=0,
            tol=preset.tol,
            max_matvecs=preset.max_matvecs,
            diagonal_probes=0,
            stability=False,
        )
    found: list[float] = []
    with profiled:
        for loss in task.step_losses():
            found.append(float(optimizer.step(closure_for(optimizer, task.model, loss))))
            if not math.isfinite(found[-1]):
                break
    return found


def page(folder: Path) -> str:
    """Compare losses early and late in all trials of a folder.

    Args:
        folder: ``--out``.

    Returns:
        A markdown table: geometric means over seeds.
    """
    trials: dict[str, dict[str, list[list[float]]]] = {}
    for path in sorted(folder.glob("*.json")):
        trial = json.loads(path.read_text())
        by_optimizer = trials.setdefault(trial["scenario"], {})
        by_optimizer.setdefault(trial["optimizer"], []).append(trial["losses"])
    rows = []
    for (scenario, found), base in itertools.product(trials.items(), ("sgd", "adam")):
        steps = max(len(losses) for losses in found[base])
        for step in (max(1, steps // 10), steps):
            plain, fosi = ([_loss_at(x, step) for x in found[n]] for n in (base, f"fosi-{base}"))
            quotients = [a / b for a, b in zip(plain, fosi, strict=True)]
            lower, diverged = sum(q > 1 for q in quotients), sum(not x < math.inf for x in fosi)
            counts = [f"{count} of {len(fosi)}" for count in (lower, diverged)]
            cells = [spread(numbers) for numbers in (plain, fosi, quotients)]
            rows.append([scenario, base, str(step), *cells, *counts])
    columns = ["loss of the base", "of FOSI on it", "base / FOSI", "FOSI lower", "FOSI diverged"]
    return table(["scenario", "base", "step", *columns], rows) + "\n"


def _loss_at(losses: list[float], step: int) -> float:
    """Geometric mean over the ten steps before; infinite where the run has diverged by then."""
    window = losses[max(0, step - 10) : step]
    whole = len(losses) >= step and np.isfinite(window).all()
    return float(np.exp(np.mean(np.log(window)))) if whole else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description="FOSI beside its base optimizers.")
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="fewer or more than the preset's")
    parser.add_argument("--data", type=Path, help="folder of the images")
    parser.add_argument("--out", type=Path, default=Path("results/figure7"))
    args = parser.parse_args()
    folders = FOLDERS if args.data is None else (args.data,)
    args.out.mkdir(parents=True, exist_ok=True)
    for scenario in NETWORKS:
        for name in ("sgd", "fosi-sgd", "adam", "fosi-adam"):
            preset = PRESETS[args.preset].paced(name, args.steps)
            experiment = Experiment(scenario, preset, folders)
            for seed in range(args.seeds):
                path = args.out / f"{scenario}-{name}-seed{seed}.h5"
                trial = {
                    "scenario": scenario,
                    "optimizer": name,
                    "losses": losses(experiment, name, seed, path),
                }
                path.with_suffix(".json").write_text(json.dumps(trial))
                print(f"{path.stem}: {trial['losses'][-1]:.4g}", flush=True)
    (args.out / "figure7.md").write_text(page(args.out), encoding="utf-8")
    print(page(args.out))


if __name__ == "__main__":
    main()
