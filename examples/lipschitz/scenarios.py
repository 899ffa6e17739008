"""What is compared in figures 2 and 4: a network, images and a loss each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from examples.lipschitz.data import Images
from examples.lipschitz.networks import autoencoder, classifier, resnet18
from examples.lipschitz.presets import Size

Loss = Callable[[nn.Module], Tensor]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A network on images."""

    title: str
    network: str  # key of a preset's sizes
    images: str  # key of data.SOURCES
    options: dict[str, Any] = field(default_factory=dict)  # of the network

    @property
    def reconstructs(self) -> bool:
        """Whether the target is the image itself."""
        return self.network == "autoencoder"

    def model(self, images: Images, size: Size) -> nn.Module:
        """Build the network for images of this shape."""
        channels, side = images.inputs.shape[1:3]
        if self.network == "classifier":
            return classifier(channels, side, **self.options)
        if self.network == "resnet18":
            return resnet18(channels, width=size.width, **self.options)
        return autoencoder(channels, side, width=size.width, **self.options)

    def loss(self, images: Images) -> Loss:
        """Take the mean cross-entropy of the labels, or the mean squared error of the image."""
        if self.reconstructs:
            return lambda model: F.mse_loss(model(images.intensities), images.intensities)
        return lambda model: F.cross_entropy(model(images.inputs), images.labels)


_SMOOTH = {"activation": nn.GELU, "pool": nn.AvgPool2d}
_SMOOTH_CODER = {"leaky": nn.GELU, "rectifier": nn.GELU}

_classifier = partial(Scenario, network="classifier")
_resnet18 = partial(Scenario, network="resnet18")
_autoencoder = partial(Scenario, network="autoencoder", images="mnist")

SCENARIOS = {
    "resnet18-mnist": _resnet18("ResNet18 on MNIST", images="mnist"),
    "resnet18-cifar10": _resnet18("ResNet18 on CIFAR-10", images="cifar10"),
    "resnet18-noise": _resnet18("ResNet18 on noise", images="noise"),
    "resnet18-plain": _resnet18(
        "ResNet18 without shortcuts on CIFAR-10", images="cifar10", options={"shortcuts": False}
    ),
    "cnn-mnist": _classifier("CNN on MNIST", images="mnist"),
    "cnn-cifar10": _classifier("CNN on CIFAR-10", images="cifar10"),
    "cnn-noise": _classifier("CNN on noise", images="noise"),
    "cnn-residual": _classifier(
        "CNN with shortcuts on CIFAR-10", images="cifar10", options={"residual": True}
    ),
    "cnn-smooth": _classifier(
        "CNN with GELU and mean-pooling on CIFAR-10", images="cifar10", options=_SMOOTH
    ),
    "autoencoder-mnist": _autoencoder("Autoencoder on MNIST"),
    "autoencoder-smooth": _autoencoder("Autoencoder with GELU on MNIST", options=_SMOOTH_CODER),
}
