"""What is trained: a character GPT on real text, or App. J's CNN and ResNet18 on CIFAR-10.

A seed fixes initial parameters, batches and probe, whatever the strategy.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from examples.amos.presets import Preset
from examples.lipschitz.data import Images, cifar10
from examples.lipschitz.presets import Size
from examples.lipschitz.scenarios import SCENARIOS
from lipprof.demo.gpt import CharGPT
from lipprof.demo.text import load_text

VALIDATION_BATCHES, VALIDATION_WINDOWS = 4, 128  # of text; of images: all 2,000 of the test set
VALIDATION_IMAGES = 500  # at a time


class Task(ABC):
    """A network with its data.

    Attributes:
        model: the network.
        origin: of the data, in words.
    """

    model: nn.Module
    origin: str

    @abstractmethod
    def batch(self) -> Any:
        """Draw the next training batch."""

    @abstractmethod
    def probe(self) -> Any:
        """Draw the batch by which is decided; the same one each time."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean cross-entropy, in nats."""

    @abstractmethod
    def logits(self, batch: Any) -> Tensor:
        """Of every label of a batch, (N, classes)."""

    @abstractmethod
    def eligible(self, name: str, tensor: Tensor) -> bool:
        """Whether the second arm may take a tensor."""

    @abstractmethod
    def validation(self) -> float:
        """Loss over held-out data, the same for all runs."""


class TextTask(Task):
    """The character GPT; the second arm may take the matrices of the blocks."""

    def __init__(self, preset: Preset, seed: int, device: str) -> None:
        self._preset, self._seed, self._device = preset, seed, device
        self._text = load_text()
        self.origin = self._text.origin
        torch.manual_seed(seed)
        self.model = CharGPT(
            self._text.vocabulary, length=preset.length, layers=preset.layers, width=preset.width
        ).to(device)
        self._generator = torch.Generator().manual_seed(1_000 + seed)

    def _windows(
        self, split: str, size: int, generator: torch.Generator | int
    ) -> tuple[Tensor, Tensor]:
        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        inputs, targets = self._text.batch(
            split, size=size, length=self._preset.length, generator=generator
        )
        return inputs.to(self._device), targets.to(self._device)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Draw random windows."""
        return self._windows("train", self._preset.batch, self._generator)

    def probe(self) -> tuple[Tensor, Tensor]:
        """Draw the probe's windows."""
        return self._windows("train", self._preset.probe, 9_000 + self._seed)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Per character."""
        return model.loss(batch)  # pyright: ignore[reportCallIssue]

    def logits(self, batch: Any) -> Tensor:
        """Of every character."""
        return self.model(batch[0]).flatten(0, 1)

    def eligible(self, name: str, tensor: Tensor) -> bool:
        """The matrices of the blocks."""
        return name.startswith("blocks.") and tensor.ndim == 2

    @torch.no_grad()
    def validation(self) -> float:
        """Over fixed windows of the validation text."""
        losses = [
            self.loss(self.model, self._windows("validation", VALIDATION_WINDOWS, 100 + i))
            for i in range(VALIDATION_BATCHES)
        ]
        return float(np.mean([float(loss) for loss in losses]))


class ImageTask(Task):
    """A network of App. J; the second arm may take all convolutions and matrices but the last."""

    def __init__(self, scenario: str, preset: Preset, seed: int, device: str) -> None:
        self._preset, self._seed, self._device = preset, seed, device
        self._scenario = SCENARIOS[scenario]
        self._train, self._held_out = cifar10(), cifar10(part="test")
        self.origin = self._train.origin
        torch.manual_seed(seed)
        size = Size(preset.batch, width=preset.width)
        self.model = self._scenario.model(self._train, size).to(device)
        matrices = [name for name, p in self.model.named_parameters() if p.ndim >= 2]
        self._head = matrices[-1]
        self._drawn = 0

    def _images(self, count: int, seed: int) -> Images:
        return self._train.sample(count, seed).to(self._device)

    def batch(self) -> Images:
        """Draw images of the training set."""
        self._drawn += 1
        return self._images(self._preset.batch, 1_000_000 * (self._seed + 1) + self._drawn)

    def probe(self) -> Images:
        """Draw the probe's images."""
        return self._images(self._preset.probe, self._seed)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Per image."""
        return self._scenario.loss(batch)(model)

    def logits(self, batch: Any) -> Tensor:
        """Of every image."""
        return self.model(batch.inputs)

    def eligible(self, name: str, tensor: Tensor) -> bool:
        """All but the last layer, biases and normalisation."""
        return tensor.ndim >= 2 and name != self._head

    @torch.no_grad()
    def validation(self) -> float:
        """Over the test set."""
        losses = [
            float(self.loss(self.model, part.to(self._device))) * len(part.labels)
            for part in self._held_out.split(VALIDATION_IMAGES)
        ]
        return float(np.sum(losses)) / len(self._held_out.labels)


def build_task(name: str, preset: Preset, seed: int, device: str) -> Task:
    """Build a task.

    Args:
        name: a key of ``presets.PRESETS``.
        preset: its size.
        seed: of parameters, batches and probe.
        device: where.

    Returns:
        The task.
    """
    if name == "gpt":
        return TextTask(preset, seed, device)
    return ImageTask(f"{name}-cifar10", preset, seed, device)
