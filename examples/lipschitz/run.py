"""Train a scenario and measure L⁺ and L⁻ along the way, seed by seed.

python -m examples.lipschitz.run cnn-cifar10 --preset cpu --seeds 3 --out results

Writes for every seed a run file (``lipprof report results/cnn-cifar10-seed0.h5``) with λ, γ and the
drift of the top and bottom eigenpairs, and beside it a JSON file with what the other estimators say
(``estimators``).  ``python -m examples.lipschitz.results results`` reads both.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lipprof
from examples.lipschitz.data import FOLDERS
from examples.lipschitz.estimators import Point, estimators
from examples.lipschitz.presets import OPTIMIZERS, PRESETS, build_optimizer
from examples.lipschitz.scenarios import SCENARIOS, Loss
from examples.lipschitz.training import Experiment, Task, closure_for
from lipprof.curvature import DisplacedLoss, ProbeLoss


class Observer:
    """A step pre-hook, registered after the profiler's: asks all estimators where it measured."""

    def __init__(self, prof: lipprof.Profiler, loss: Loss) -> None:
        self.series: dict[str, list[list[float]]] = {}
        self._prof, self._loss = prof, loss
        self._displaced = DisplacedLoss(ProbeLoss(prof.model, loss), prof.view)
        self._estimators = estimators()
        self._seen: Any = None

    def __call__(self, *_: Any) -> None:
        """Look, where the profiler has just measured."""
        pairs = self._prof.eigenpairs
        if pairs is None or pairs is self._seen:
            return
        self._seen = pairs
        slope = -(pairs.vectors @ self._gradient()).double().cpu()
        point = Point(self._displaced, pairs.vectors, pairs.values, slope.clamp(min=0))
        for estimator in self._estimators:
            for name, numbers in estimator(point).items():
                self.series.setdefault(name, []).append(numbers.tolist())

    def _gradient(self) -> Tensor:
        view = self._prof.view
        return view.flatten(torch.autograd.grad(self._loss(self._prof.model), view.parameters))


def train(experiment: Experiment, optimizer_name: str, seed: int, path: Path) -> None:
    """Train, measure on one fixed batch, and write the two files.

    Args:
        experiment: what to train.
        optimizer_name: see ``presets.build_optimizer``.
        seed: of the network and of the images.
        path: of the run file.
    """
    task, preset = Task(experiment, seed), experiment.preset
    optimizer = build_optimizer(optimizer_name, task.model, preset)
    with lipprof.attach(
        task.model,
        optimizer,
        path,
        loss=task.loss,
        profile="paper-lipschitz",
        every=preset.every,
        tol=preset.tol,
        max_matvecs=preset.max_matvecs,
        stability=False,
        strict=True,
    ) as prof:
        observer = Observer(prof, task.loss)
        hook = optimizer.register_step_pre_hook(observer)
        for loss in task.step_losses():
            optimizer.step(closure_for(optimizer, task.model, loss))
        hook.remove()
    about = {
        "scenario": experiment.name,
        "optimizer": optimizer_name,
        "seed": seed,
        "origin": task.images.origin,
        "images": task.size.images,
        "parameters": prof.view.n,
    }
    path.with_suffix(".json").write_text(json.dumps({"about": about, "series": observer.series}))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure L+ and L- along a training run.")
    parser.add_argument("scenario", choices=[*SCENARIOS, "all"])
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="arc")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="folder of the images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args()
    folders = FOLDERS if args.data is None else (args.data,)
    for name in SCENARIOS if args.scenario == "all" else [args.scenario]:
        experiment = Experiment(name, PRESETS[args.preset], folders, args.device)
        for seed in range(args.seeds):
            started = time.perf_counter()
            path = args.out / f"{name}-{args.optimizer}-seed{seed}.h5"
            train(experiment, args.optimizer, seed, path)
            print(f"{path}  {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
