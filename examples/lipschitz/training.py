"""A scenario made ready to train: network, loss that is measured, and the losses of its steps."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.lipschitz.data import FOLDERS, SOURCES, Images
from examples.lipschitz.presets import Preset
from examples.lipschitz.scenarios import SCENARIOS, Loss, Scenario
from lipprof import ARC


@dataclass(frozen=True, slots=True)
class Experiment:
    """One choice of everything but the optimizer and the seed."""

    name: str  # of the scenario
    preset: Preset
    folders: tuple[Path, ...] = FOLDERS
    device: str = "cpu"

    @property
    def scenario(self) -> Scenario:
        """The scenario of this name."""
        return SCENARIOS[self.name]


class Task:
    """One seed of an experiment.

    Args:
        experiment: what to train.
        seed: of the network and of the images.
    """

    def __init__(self, experiment: Experiment, seed: int) -> None:
        scenario, self._experiment, self._seed = experiment.scenario, experiment, seed
        self.size = experiment.preset.sizes[scenario.network]
        self._everything = SOURCES[scenario.images](experiment.folders)
        self.images: Images = self._draw(seed)
        torch.manual_seed(seed)
        self.model: nn.Module = scenario.model(self.images, self.size).to(experiment.device)
        self.loss: Loss = scenario.loss(self.images)

    def step_losses(self) -> Iterator[Loss]:
        """Give the loss of each step: the one that is measured, or of another batch each."""
        preset = self._experiment.preset
        for step in range(preset.steps):
            if preset.minibatches:
                images = self._draw(1_000 * (self._seed + 1) + step)
                yield self._experiment.scenario.loss(images)
            else:
                yield self.loss

    def _draw(self, seed: int) -> Images:
        return self._everything.sample(self.size.images, seed).to(self._experiment.device)


def closure_for(optimizer: torch.optim.Optimizer, model: nn.Module, loss: Loss) -> Any:
    """Make what an optimizer's step wants; ARC differentiates the loss by itself."""

    def differentiated() -> Tensor:
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value.detach()

    return partial(loss, model) if isinstance(optimizer, ARC) else differentiated
