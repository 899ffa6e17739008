"""Small networks that stand for the kinds that people train, with a batch and a loss each."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """A transformer block over tokens with stock scaled_dot_product_attention."""

    def __init__(self, vocabulary=11, width=8, dropout=0.0):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens):
        x = self.embed(tokens)
        split = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in split)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(x + self.drop(mixed.transpose(1, 2).flatten(2)))


def mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))


def batchnorm_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


@dataclass
class Problem:
    model: nn.Module
    inputs: Any
    targets: Any

    def loss(self, model, batch=None):
        inputs, targets = batch if batch is not None else (self.inputs, self.targets)
        return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())

    def batch(self, iteration, size=8):
        start = (iteration * size) % (len(self.inputs) - size)
        return self.inputs[start : start + size], self.targets[start : start + size]


def problem(kind, dtype=torch.float32, count=40):
    generator = torch.Generator().manual_seed(3)
    if kind == "attention":
        tokens = torch.randint(0, 11, (count, 7), generator=generator)
        return Problem(Attention(dropout=0.1).to(dtype), tokens[:, :-1], tokens[:, 1:])
    targets = torch.randint(0, 3, (count,), generator=generator)
    if kind == "mlp":
        return Problem(
            mlp().to(dtype), torch.randn(count, 5, generator=generator, dtype=dtype), targets
        )
    images = torch.randn(count, 1, 6, 6, generator=generator, dtype=dtype)
    return Problem(batchnorm_cnn().to(dtype), images, targets)


KINDS = ["mlp", "batchnorm", "attention"]
