"""The networks of App. J, and what they are compared with: residual or not, ReLU or smooth.

What the appendix leaves open, and how it is read here:

* The classifier's first convolution is padded where the image has 28 pixels a side, so that 400
  features reach the MLP from either size (LeNet-5).
* ResNet18 is the one for small images, with a 3 x 3 stem.  It has GroupNorm instead of BatchNorm:
  BatchNorm in train mode makes the loss of an image depend on the batch, and in eval mode on
  running statistics, which move along the run although no parameter does, and would be counted as
  drift of the eigenvalues.
* The autoencoder's bottleneck is an MLP from the encoder's features to as many for the decoder,
  128-64-36-18-9-18-36-64-128 are its hidden widths, and the sigmoid stands at its end.  Seven
  channels are printed for eight convolutions of the decoder; another 16 is put before the last,
  which has as many as the image.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[], nn.Module]
Norm = Callable[[int], nn.Module]

BOTTLENECK = (128, 64, 36, 18, 9, 18, 36, 64, 128)
GROUPS = 32  # Wu & He (2018); of at least two channels each


def classifier(
    channels: int = 3,
    size: int = 32,
    *,
    classes: int = 10,
    activation: Activation = nn.ReLU,
    pool: Callable[[int], nn.Module] = nn.MaxPool2d,
    residual: bool = False,
) -> nn.Module:
    """Build the classifier CNN: two convolutions, each with 2 x 2 max-pooling, and an MLP.

    Args:
        channels: of the image.
        size: 32 or 28 pixels a side.
        classes: outputs.
        activation: after every layer but the last.
        pool: from the side of its window to a layer; ``nn.AvgPool2d`` is smooth.
        residual: with a shortcut around every layer that has an activation; it has no parameters.

    Returns:
        From (N, channels, size, size) to (N, classes).
    """
    layer = Shortcut if residual else nn.Sequential
    return nn.Sequential(
        layer(nn.Conv2d(channels, 6, 5, padding=2 if size == 28 else 0), activation()),
        pool(2),
        layer(nn.Conv2d(6, 16, 5), activation()),
        pool(2),
        nn.Flatten(),
        layer(nn.Linear(400, 120), activation()),
        layer(nn.Linear(120, 84), activation()),
        nn.Linear(84, classes),
    )


class Shortcut(nn.Sequential):
    """Modules in a row, and their input added: cut to the middle, padded with zero channels."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, ...) to (N, C', ...)."""
        output = super().forward(input)
        for axis in range(2, input.ndim):
            spare = input.shape[axis] - output.shape[axis]
            input = input.narrow(axis, spare // 2, output.shape[axis])
        missing = output.shape[1] - input.shape[1]
        return output + F.pad(input, [0, 0] * (input.ndim - 2) + [0, missing])


def group_norm(channels: int) -> nn.Module:
    """GroupNorm with 32 groups, or as many as leave two channels to each."""
    return nn.GroupNorm(min(GROUPS, channels // 2), channels)


class Block(nn.Module):
    """Two 3 x 3 convolutions, beside a shortcut or alone."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, *, norm: Norm, shortcut: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = norm(outputs)
        self.shortcut: nn.Module | None = nn.Sequential() if shortcut else None
        if shortcut and (stride != 1 or inputs != outputs):
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y if self.shortcut is None else y + self.shortcut(x))


def resnet18(
    channels: int = 3,
    *,
    width: int = 64,
    classes: int = 10,
    norm: Norm = group_norm,
    shortcuts: bool = True,
) -> nn.Module:
    """Build ResNet18 for small images: a 3 x 3 stem, four stages of two blocks each.

    Args:
        channels: of the image.
        width: of the first stage; the paper's is 64.
        classes: outputs.
        norm: from the number of channels to a normalisation.
        shortcuts: without them it is He et al.'s (2016) plain network.

    Returns:
        From (N, channels, H, W) to (N, classes).
    """
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        norm(width),
        nn.ReLU(),
    ]
    inputs = width
    for stage in range(4):
        outputs = width * 2**stage
        for stride in (1 if stage == 0 else 2, 1):
            layers.append(Block(inputs, outputs, stride, norm=norm, shortcut=shortcuts))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def autoencoder(
    channels: int = 1,
    size: int = 28,
    *,
    width: int = 16,
    leaky: Activation = nn.LeakyReLU,
    rectifier: Activation = nn.ReLU,
) -> nn.Module:
    """Build the convolutional autoencoder.

    Args:
        channels: of the image.
        size: pixels a side, a multiple of 4.
        width: of its first convolution, which all others are multiples of; the paper's is 16.
        leaky: activation of the convolutions.
        rectifier: activation of the bottleneck.

    Returns:
        From (N, channels, size, size) to the same.
    """
    one, two, four = width, 2 * width, 4 * width
    features = four * (size // 4) ** 2

    def conv(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), leaky()]

    def grow(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.ConvTranspose2d(inputs, outputs, 2, stride=2), leaky()]

    def widen(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.ConvTranspose2d(inputs, outputs, 5, padding=2)]

    encoder = [
        *conv(channels, one, 3), *conv(one, two, 3), nn.MaxPool2d(2),
        *conv(two, two, 5), *conv(two, four, 5), nn.MaxPool2d(2),
    ]  # fmt: skip
    bottleneck: list[nn.Module] = []
    for inputs, outputs in zip((features, *BOTTLENECK[:-1]), BOTTLENECK, strict=True):
        bottleneck += [nn.Linear(inputs, outputs), rectifier()]
    bottleneck += [nn.Linear(BOTTLENECK[-1], features), nn.Sigmoid()]
    decoder = [
        *grow(four, two), *conv(two, two, 5), *widen(two, one), *conv(one, one, 5),
        *grow(one, one), *conv(one, one, 3), *widen(one, one), *conv(one, channels, 3),
    ]  # fmt: skip
    return nn.Sequential(
        nn.Sequential(*encoder, nn.Flatten()),
        nn.Sequential(*bottleneck),
        nn.Sequential(nn.Unflatten(1, (four, size // 4, size // 4)), *decoder),
    )
