"""Where the data of the problems comes from: files where there are some, else noise like them."""

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lipprof.demo.text import TINY_SHAKESPEARE, load_text

ENVIRONMENT = "LIPPROF_BENCHMARK_DATA"
_FOLDERS = (".", "data", "../shared/data")
_MNIST_PREFIXES = ("mnist-10k-", "t10k-", "train-")
_CIFAR = "cifar10-subset.npz"

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
    return [Path(folder) for folder in _FOLDERS]


def mnist(places: list[Path]) -> Source:
    names = [f"{prefix}images-idx3-ubyte.gz" for prefix in _MNIST_PREFIXES]
    path = _first(places, names)
    if path is None:
        return _synthetic((1, 28, 28))
    images = _idx(path, 16).reshape(-1, 1, 28, 28)
    labels = _idx(path.with_name(path.name.replace("images-idx3", "labels-idx1")), 8)
    return _images("MNIST", images, labels)


def cifar(places: list[Path]) -> Source:
    path = _first(places, [_CIFAR])
    if path is None:
        return _synthetic((3, 32, 32))
    with np.load(path) as arrays:
        images, labels = arrays["train_images"], arrays["train_labels"]
    return _images("CIFAR-10 subset", images.transpose(0, 3, 1, 2), labels)


def characters(places: list[Path], length: int) -> Source:
    """Windows of TinyShakespeare, or of the standard library's sources."""
    text = load_text(_first(places, [TINY_SHAKESPEARE]))

    def draw(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return text.batch("train", size=size, length=length, generator=generator)

    return Source(text.origin, draw, text.vocabulary)


def _first(places: list[Path], names: list[str]) -> Path | None:
    candidates = (place / name for place in places for name in names)
    return next((path for path in candidates if path.is_file()), None)


def _idx(path: Path, header_bytes: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header_bytes)


def _images(origin: str, images: np.ndarray, labels: np.ndarray) -> Source:
    inputs = torch.from_numpy(np.array(images)).float() / 255
    inputs = (inputs - inputs.mean()) / inputs.std()
    targets = torch.from_numpy(labels.astype(np.int64))

    def draw(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(len(inputs), generator=generator)[:size]
        return inputs[chosen], targets[chosen]

    return Source(origin, draw, 10)


def _synthetic(shape: tuple[int, ...]) -> Source:
    """Ten fixed images and noise upon them, so that there is something to learn."""
    patterns = torch.randn(10, *shape, generator=torch.Generator().manual_seed(0))

    def draw(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        targets = torch.randint(10, (size,), generator=generator)
        return patterns[targets] + torch.randn(size, *shape, generator=generator), targets

    return Source("synthetic data", draw, 10)
