"""How the curvature along the eigenvectors differs from batch to batch, at one θ.

vᵢᵀ H_b vᵢ is, to first order in H_b − H, the eigenvalue that batch b has there.  Costs, beside a
graph per batch, one Hessian-vector product for every pair and batch.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.curvature import HessianEngine, ParameterView, ProbeLoss
from lipprof.errors import ConfigError
from lipprof.linalg.inner import dot

LEAST_BATCHES = 2


class BatchNoise:
    """Evaluates curvature along given vectors on further batches.

    Args:
        loss: the closure of the run.
        view: the parameters.
        batches: further ones, all of about one size.
        memory_limit: bytes that the products may take beyond the model.

    Attributes:
        size_ratio: samples of the probe over samples of a batch; where the closure adds them up
            instead of taking the mean, the inverse: variances on the probe are 1/``size_ratio`` of
            those on a batch.

    Raises:
        ConfigError: fewer than two batches, whose spread is unknown, or batches of no known size.
    """

    def __init__(
        self,
        loss: ProbeLoss,
        view: ParameterView,
        batches: Sequence[Any],
        memory_limit: int | None = None,
    ) -> None:
        if len(batches) < LEAST_BATCHES:
            raise ConfigError(
                f"noise= has {len(batches)} batches: the spread over batches needs at least "
                f"{LEAST_BATCHES}."
            )
        sizes = [replace(loss, probe=[batch]).num_samples for batch in batches]
        ratio = loss.num_samples * len(sizes) / sum(sizes)
        self.size_ratio = ratio if loss.reduction == "mean" else 1 / ratio
        self._engines = [
            HessianEngine(
                replace(loss, probe=[batch]),
                view,
                planned=0,
                memory_limit=memory_limit,
                check_deterministic=False,
            )
            for batch in batches
        ]

    def quotients(self, vectors: Float[Tensor, "k n"]) -> Float[Tensor, "B k"]:
        """Curvature of every batch's loss along every vector; to be called as an engine is.

        Args:
            vectors: unit rows.

        Returns:
            vᵢᵀ H_b vᵢ, float64 on the CPU.  Unit: loss/param².

        Raises:
            NonfiniteError: the loss or a product of a batch is NaN or infinite.
        """  # noqa: DOC502 - raised by the engine
        return torch.stack([self._of_batch(engine, vectors) for engine in self._engines]).cpu()

    def _of_batch(self, engine: HessianEngine, vectors: Tensor) -> Tensor:
        operator = engine.operator()
        return torch.stack([dot(vector, operator.matvec(vector)) for vector in vectors])
