"""Where the data of the problems comes from: files where there are some, else noise like them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from examples.lipschitz import data as images
from lipprof.demo.text import TINY_SHAKESPEARE, load_text
from lipprof.errors import MissingExtraError

ENVIRONMENT = "LIPPROF_BENCHMARK_DATA"

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Source:
    """Draws batches of inputs and targets."""

    origin: str
    draw: Draw
    classes: int


def folders(chosen: Path | None) -> list[Path]:
    """Where to look: the option, else the environment variable, else the usual places."""
    if chosen is not None:
        return [chosen]
    if ENVIRONMENT in os.environ:
        return [Path(os.environ[ENVIRONMENT])]
    return list(images.FOLDERS)


def mnist(places: list[Path]) -> Source:
    return _images(images.mnist, places, (1, 28, 28))


def cifar(places: list[Path]) -> Source:
    return _images(images.cifar10, places, (3, 32, 32))


def characters(places: list[Path], length: int) -> Source:
    """Windows of TinyShakespeare, or of the standard library's sources."""
    candidates = (place / TINY_SHAKESPEARE for place in places)
    text = load_text(next((path for path in candidates if path.is_file()), None))

    def draw(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return text.batch("train", size=size, length=length, generator=generator)

    return Source(text.origin, draw, text.vocabulary)


def _images(
    load: Callable[..., images.Images], places: list[Path], shape: tuple[int, ...]
) -> Source:
    try:
        found = load(places, download=False)
    except MissingExtraError:
        return _synthetic(shape)

    def draw(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(len(found.labels), generator=generator)[:size]
        return found.inputs[chosen], found.labels[chosen]

    return Source(found.origin, draw, images.CLASSES)


def _synthetic(shape: tuple[int, ...]) -> Source:
    """Ten fixed images and noise upon them, so that there is something to learn."""
    patterns = torch.randn(10, *shape, generator=torch.Generator().manual_seed(0))

    def draw(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        targets = torch.randint(10, (size,), generator=generator)
        return patterns[targets] + torch.randn(size, *shape, generator=generator), targets

    return Source("synthetic data", draw, 10)
