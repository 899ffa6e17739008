"""The problems: a network after some training, and a fixed batch."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.benchmarks import data, networks

STEPS = 100


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A loss surface: criterion(model(inputs), targets), in eval mode."""

    name: str
    description: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    criterion: nn.Module

    @property
    def n(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def loss(self, model: nn.Module) -> Tensor:
        return self.criterion(model(self.inputs), self.targets)

    def copied(self, dtype: torch.dtype | None = None) -> "Problem":
        """With a model of its own, perhaps in another precision."""
        model, inputs = copy.deepcopy(self.model), self.inputs
        if dtype is not None:
            model = model.to(dtype)
            inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
        return replace(self, model=model, inputs=inputs)

    def split(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([parameter.numel() for parameter in self.parameters])
        return [
            part.view_as(parameter) for part, parameter in zip(parts, self.parameters, strict=True)
        ]


def flatten(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in parts])


def cnn(folder: Path | None, device: str, *, quick: bool) -> Problem:
    """The paper's classifier on MNIST."""
    source, batch = data.mnist(data.folders(folder)), 64 if quick else 256
    return _trained("cnn", networks.classifier, source, batch, device, steps=_steps(quick))


def gpt(folder: Path | None, device: str, *, quick: bool) -> Problem:
    """A character GPT on TinyShakespeare."""
    length, layers, width, batch = (16, 2, 32, 4) if quick else (64, 4, 128, 16)
    source = data.characters(data.folders(folder), length)

    def build() -> nn.Module:
        return networks.gpt(source.classes, length=length, layers=layers, width=width)

    return _trained("gpt", build, source, batch, device, steps=_steps(quick))


def resnet(folder: Path | None, device: str, *, quick: bool) -> Problem:
    """ResNet18 on CIFAR-10, BatchNorm in eval mode."""
    source, width, batch = data.cifar(data.folders(folder)), 8 if quick else 64, 8 if quick else 32

    def build() -> nn.Module:
        return networks.resnet18(width)

    return _trained("resnet", build, source, batch, device, steps=_steps(quick))


PROBLEMS: dict[str, Callable[..., Problem]] = {"cnn": cnn, "gpt": gpt, "resnet": resnet}


def _steps(quick: bool) -> int:
    return 20 if quick else STEPS


def _trained(
    name: str,
    build: Callable[[], nn.Module],
    source: data.Source,
    batch: int,
    device: str,
    *,
    steps: int,
) -> Problem:
    torch.manual_seed(0)
    model, criterion = build().to(device).train(), networks.TokenCrossEntropy()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        inputs, targets = (part.to(device) for part in source.draw(batch, generator))
        optimizer.zero_grad()
        criterion(model(inputs), targets).backward()
        optimizer.step()
    model.eval().zero_grad()
    inputs, targets = (part.to(device) for part in source.draw(batch, generator))
    n = sum(parameter.numel() for parameter in model.parameters())
    description = f"n = {n:,}, batch {batch} of {source.origin}, after {steps} steps"
    return Problem(name, description, model, inputs, targets, criterion)
