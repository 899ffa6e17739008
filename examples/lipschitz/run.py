"""Train a scenario and measure L⁺ and L⁻ along the way, seed by seed.

python -m examples.lipschitz.run cnn-cifar10 --preset cpu --seeds 3 --out results

Writes for every seed a run file (``lipprof report results/cnn-cifar10-seed0.h5``) with λ, γ and the
drift of the top and bottom eigenpairs, and beside it a JSON file with what the other estimators say
(``estimators``).  ``python -m examples.lipschitz.results results`` reads both.
"""

import argparse
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lipprof
from examples.lipschitz.data import FOLDERS, SOURCES
from examples.lipschitz.estimators import Point, estimators
from examples.lipschitz.presets import PRESETS, Preset, build_optimizer
from examples.lipschitz.scenarios import SCENARIOS, Loss, Scenario
from lipprof import ARC
from lipprof.curvature import DisplacedLoss, ProbeLoss


@dataclass(frozen=True, slots=True)
class Experiment:
    """One choice of everything but the seed."""

    name: str  # of the scenario
    preset: Preset
    optimizer: str
    folders: tuple[Path, ...] = FOLDERS
    device: str = "cpu"

    @property
    def scenario(self) -> Scenario:
        """The scenario of this name."""
        return SCENARIOS[self.name]


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


def train(experiment: Experiment, seed: int, path: Path) -> None:
    """Train, measure on one fixed batch, and write the two files.

    Args:
        experiment: what to train.
        seed: of the network and of the images.
        path: of the run file.
    """
    scenario, preset = experiment.scenario, experiment.preset
    size = preset.sizes[scenario.network]
    everything = SOURCES[scenario.images](experiment.folders)
    images = everything.sample(size.images, seed).to(experiment.device)
    torch.manual_seed(seed)
    model, loss = scenario.model(images, size).to(experiment.device), scenario.loss(images)
    optimizer = build_optimizer(experiment.optimizer, model, preset)
    with lipprof.attach(
        model,
        optimizer,
        path,
        loss=loss,
        profile="paper-lipschitz",
        every=preset.every,
        tol=preset.tol,
        max_matvecs=preset.max_matvecs,
        stability=False,
        strict=True,
    ) as prof:
        observer = Observer(prof, loss)
        hook = optimizer.register_step_pre_hook(observer)
        for step in range(preset.steps):
            step_loss = loss
            if preset.minibatches:
                batch = everything.sample(size.images, 1_000 * (seed + 1) + step)
                step_loss = scenario.loss(batch.to(experiment.device))
            optimizer.step(closure_for(optimizer, model, step_loss))
        hook.remove()
    about = {
        "scenario": experiment.name,
        "origin": images.origin,
        "images": size.images,
        "parameters": prof.view.n,
        "optimizer": experiment.optimizer,
        "seed": seed,
    }
    path.with_suffix(".json").write_text(json.dumps({"about": about, "series": observer.series}))


def closure_for(optimizer: torch.optim.Optimizer, model: nn.Module, loss: Loss) -> Any:
    """Make what an optimizer's step wants; ARC differentiates the loss by itself."""

    def differentiated() -> Tensor:
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value

    return partial(loss, model) if isinstance(optimizer, ARC) else differentiated


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure L+ and L- along a training run.")
    parser.add_argument("scenario", choices=[*SCENARIOS, "all"])
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--optimizer", choices=["arc", "sgd", "adam"], default="arc")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="folder of the images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args()
    folders = FOLDERS if args.data is None else (args.data,)
    for name in SCENARIOS if args.scenario == "all" else [args.scenario]:
        preset = PRESETS[args.preset]
        experiment = Experiment(name, preset, args.optimizer, folders, args.device)
        for seed in range(args.seeds):
            started = time.perf_counter()
            path = args.out / f"{name}-{args.optimizer}-seed{seed}.h5"
            train(experiment, seed, path)
            print(f"{path}  {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
