"""A closure over a fixed probe: the one function of θ whose curvature is measured.

Every evaluation seeds the global generators first, so that dropout in train mode draws the same
masks each time, and weights the microbatches the same way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lipprof.curvature.functional import Microbatch
from lipprof.errors import ConfigError

LossClosure = Callable[..., Tensor]


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

        Yields:
            Weight and loss, with its graph, of one microbatch after the other.
        """
        torch.manual_seed(self.seed)
        for microbatch in self.microbatches():
            yield microbatch.weight, self._evaluate(microbatch)

    def microbatches(self) -> list[Microbatch]:
        """The probe, or where there is none one batch of nothing."""
        if self.probe is None:
            return [Microbatch()]
        weights = self._weights(self.probe)
        return [Microbatch((b,), weight) for b, weight in zip(self.probe, weights, strict=True)]

    def _evaluate(self, microbatch: Microbatch) -> Any:
        with torch.enable_grad():
            return self.loss(self.model, *microbatch.arguments)

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
