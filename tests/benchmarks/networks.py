"""The networks that are measured."""

from torch import Tensor, nn

from examples.lipschitz import networks
from lipprof.demo.gpt import CharGPT


def classifier() -> nn.Module:
    """The paper's: two convolutions and an MLP, for 1 x 28 x 28."""
    return networks.classifier(1, 28)


def gpt(vocabulary: int, *, length: int, layers: int, width: int) -> nn.Module:
    return CharGPT(vocabulary, length=length, layers=layers, width=width, heads=4)


def resnet18(width: int = 64) -> nn.Module:
    """For 3 x 32 x 32, with BatchNorm."""
    return networks.resnet18(width=width, norm=nn.BatchNorm2d)


class TokenCrossEntropy(nn.CrossEntropyLoss):
    """Mean over all positions of (..., classes) logits."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input.reshape(-1, input.shape[-1]), target.reshape(-1))
