"""Images: MNIST, CIFAR-10, and noise in the shape of CIFAR-10.

Files are looked for in a folder that is given, else in the working directory, in ``data`` and in
``../shared/data``: MNIST's as published (IDX, gzipped; the 60,000 of ``train-*`` or the 10,000 of
``t10k-*`` or ``mnist-10k-*``), CIFAR-10 as ``cifar10-subset.npz`` with ``train_images``
(N, 32, 32, 3) uint8, ``train_labels``, ``test_images`` and ``test_labels``.  What is not there is
downloaded by torchvision, where that is installed.
"""

import gzip
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lipprof.errors import ConfigError, MissingExtraError

FOLDERS = (Path("."), Path("data"), Path("../shared/data"))
CLASSES = 10
_MNIST_PREFIXES = ("train-", "mnist-10k-", "t10k-")
_CIFAR = "cifar10-subset.npz"


@dataclass(frozen=True, slots=True)
class Images:
    """Images with labels, standardised over all pixels, and the same between 0 and 1."""

    origin: str
    inputs: Tensor  # (N, C, H, W), mean 0 and standard deviation 1
    intensities: Tensor  # (N, C, H, W) in [0, 1]
    labels: Tensor  # (N,) int64

    @classmethod
    def of_bytes(cls, origin: str, pixels: np.ndarray, labels: np.ndarray) -> "Images":
        """Take pixels (N, C, H, W) from 0 to 255."""
        intensities = torch.from_numpy(np.array(pixels)).float() / 255
        inputs = (intensities - intensities.mean()) / intensities.std()
        return cls(origin, inputs, intensities, torch.from_numpy(labels.astype(np.int64)))

    def sample(self, count: int, seed: int) -> "Images":
        """Draw images without replacement.

        Args:
            count: how many.
            seed: of the draw.

        Returns:
            The images.

        Raises:
            ConfigError: there are not as many.
        """
        if count > len(self.labels):
            raise ConfigError(
                f"{count} images were asked for; {self.origin} has {len(self.labels)}."
            )
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        return self._each(lambda tensor: tensor[order[:count]])

    def split(self, count: int) -> "list[Images]":
        """Cut into parts of at most ``count`` images, in order."""
        starts = range(0, len(self.labels), count)
        return [self._each(lambda tensor, i=i: tensor[i : i + count]) for i in starts]

    def to(self, device: str) -> "Images":
        """The same on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Images":
        tensors = (self.inputs, self.intensities, self.labels)
        return Images(self.origin, *map(change, tensors))


def mnist(folders: Sequence[Path] = FOLDERS, *, download: bool = True) -> Images:
    """Load MNIST, (N, 1, 28, 28).

    Args:
        folders: where to look.
        download: what is not there.

    Returns:
        The images.

    Raises:
        MissingExtraError: they are not there and cannot be downloaded.
    """
    path = _find(folders, [f"{prefix}images-idx3-ubyte.gz" for prefix in _MNIST_PREFIXES])
    if path is None:
        pixels, labels = _downloaded("MNIST", folders, download)
    else:
        pixels = _idx(path, 16).reshape(-1, 28, 28)
        labels = _idx(path.with_name(path.name.replace("images-idx3", "labels-idx1")), 8)
    return Images.of_bytes(f"MNIST ({len(labels):,} images)", pixels[:, None], labels)


def cifar10(
    folders: Sequence[Path] = FOLDERS,
    *,
    part: Literal["train", "test"] = "train",
    download: bool = True,
) -> Images:
    """Load CIFAR-10, (N, 3, 32, 32).

    Args:
        folders: where to look.
        part: which images.
        download: what is not there.

    Returns:
        The images.

    Raises:
        MissingExtraError: they are not there and cannot be downloaded.
    """
    path = _find(folders, [_CIFAR])
    if path is None:
        pixels, labels = _downloaded("CIFAR10", folders, download, train=part == "train")
    else:
        with np.load(path) as arrays:
            pixels, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    origin = f"CIFAR-10 ({len(labels):,} images)"
    return Images.of_bytes(origin, pixels.transpose(0, 3, 1, 2), labels)


def noise(shape: tuple[int, int, int] = (3, 32, 32), count: int = 50_000) -> Images:
    """Draw images of normal noise and labels that have nothing to do with them (FakeData)."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, *shape, generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return Images("noise", inputs, torch.special.ndtr(inputs), labels)


SOURCES: dict[str, Callable[[Sequence[Path]], Images]] = {
    "mnist": mnist,
    "cifar10": cifar10,
    "noise": lambda _: noise(count=8_000),
}


def _find(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The first of some files, by name first and by folder then."""
    candidates = (folder / name for name in names for folder in folders)
    return next((path for path in candidates if path.is_file()), None)


def _idx(path: Path, header_bytes: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header_bytes)


def _downloaded(
    name: str, folders: Sequence[Path], download: bool, *, train: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    places = ", ".join(str(folder) for folder in folders)
    missing = f"{name} is not in {places}. Pass --data FOLDER with its files"
    if not download:
        raise MissingExtraError(f"{missing}.")
    try:
        datasets: Any = importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise MissingExtraError(
            f"{missing}, or install the torchvision that belongs to your torch, which downloads "
            f"them ({error})."
        ) from None
    data = getattr(datasets, name)(root=str(folders[-1]), train=train, download=True)
    return np.asarray(data.data), np.asarray(data.targets)
