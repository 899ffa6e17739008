"""A closure over a fixed probe: the one function of θ whose curvature is measured.

Every evaluation seeds the global generators first, so that dropout in train mode draws the same
masks each time, and weights the microbatches the same way.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lipprof.curvature.loss.functional import Microbatch
from lipprof.errors import ConfigError

LossClosure = Callable[..., Tensor]
GradMode = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class ProbeLoss:
    """Σ_b w_b loss(model, batch_b), or loss(model) where there is no probe."""

    model: nn.Module
    loss: LossClosure
    probe: Sequence[Any] | None = None  # microbatches; mean-reduced ones are weighted by size
    reduction: Literal["mean", "sum"] = "mean"  # of the closure over a microbatch
    seed: int = 0  # of the global generators during an evaluation

    def terms(self) -> Iterator[tuple[float, Tensor]]:
        """Evaluate the closure at the present parameters.

        To be called under ``undisturbed``.

        Returns:
            Weight and loss, with its graph, of one microbatch after the other, lazily.
        """
        return self._terms(torch.enable_grad)

    def value(self) -> float:
        """Evaluate Σ_b w_b loss_b without a graph; to be called under ``undisturbed``.

        A closure that differentiates within itself is evaluated again with one.

        Returns:
            The loss at the present parameters, NaN and infinity included.
        """
        try:
            return self._total(torch.no_grad)
        except RuntimeError:
            return self._total(torch.enable_grad)

    def microbatches(self) -> list[Microbatch]:
        """The probe, or where there is none one batch of nothing."""
        if self.probe is None:
            return [Microbatch()]
        weights = self._weights(self.probe)
        return [Microbatch((b,), weight) for b, weight in zip(self.probe, weights, strict=True)]

    @property
    def num_samples(self) -> int:
        """Samples in the probe.

        Raises:
            ConfigError: a microbatch holds no tensor with a batch dimension.
        """
        return sum(_batch_size(batch) for batch in self.probe or ())

    def _total(self, grad_mode: GradMode) -> float:
        return sum(weight * float(loss.detach()) for weight, loss in self._terms(grad_mode))

    def _terms(self, grad_mode: GradMode) -> Iterator[tuple[float, Tensor]]:
        torch.manual_seed(self.seed)
        for microbatch in self.microbatches():
            with grad_mode():
                loss = self.loss(self.model, *microbatch.arguments)
            yield microbatch.weight, loss

    def _weights(self, probe: Sequence[Any]) -> list[float]:
        if self.reduction == "sum":
            return [1.0] * len(probe)
        sizes = [_batch_size(batch) for batch in probe]
        return [size / sum(sizes) for size in sizes]


def _batch_size(batch: Any) -> int:
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim > 0:
            return leaf.shape[0]
    raise ConfigError(
        "A probe microbatch holds no tensor with a batch dimension, so its weight is unknown. "
        "Give tensors, or a closure with reduction='sum'."
    )
