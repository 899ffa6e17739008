"""How far the eigenvalues, and their drift, depend on the batch that they are measured on.

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
from lipprof.lipschitz import noise_floor, noise_share, probe_variance
from lipprof.profiler.estimates.drift import PairAverage
from lipprof.profiler.estimates.pairs import SeenPairs
from lipprof.settings import Settings

LEAST_BATCHES = 2


class BatchNoise:
    """Compares eigenvalues on further batches, measurement after measurement.

    Args:
        settings: of the run.
        loss: its closure.
        view: the parameters.
        batches: further ones, all of about one size.
        memory_limit: bytes that the products may take beyond the model.

    Raises:
        ConfigError: fewer than two batches, whose spread is unknown, or batches of no known size.
    """

    def __init__(
        self,
        settings: Settings,
        loss: ProbeLoss,
        view: ParameterView,
        batches: Sequence[Any],
        memory_limit: int | None,
    ) -> None:
        if len(batches) < LEAST_BATCHES:
            raise ConfigError(
                f"noise= has {len(batches)} batches: the spread over batches needs at least "
                f"{LEAST_BATCHES}."
            )
        sizes = [replace(loss, probe=[batch]).num_samples for batch in batches]
        ratio = loss.num_samples * len(sizes) / sum(sizes)
        self._size_ratio = ratio if loss.reduction == "mean" else 1 / ratio
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

        self._squares, self._variances = PairAverage(settings), PairAverage(settings)
        self._quotients: Float[Tensor, "B P"] | None = None  # at the measurement before

    def observe(self, seen: SeenPairs, distance: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Take in the pairs of a measurement; to be called as an engine is.

        Args:
            seen: the pairs.
            distance: ‖θ_t − θ_{t−1}‖ since the measurement before; param.

        Returns:
            Numbers of the pairs, (k,), and fields of the measurement: the noise floor, and the
            share of batch noise in the averaged square of the drift.

        Raises:
            NonfiniteError: the loss or a product of a batch is NaN or infinite.
        """  # noqa: DOC502 - raised by the engine
        quotients = self._cluster_means(seen)
        numbers = {"noise_floor": noise_floor(quotients) / self._size_ratio**0.5}
        before, self._quotients = self._quotients, seen.placed(quotients.T).T
        if before is not None and distance > 0:
            numbers["lipschitz_noise"] = self._share(seen, quotients, before, distance)
        return numbers, {"num_matvecs": quotients.numel()}

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly."""
        return {
            "squares": self._squares.state_dict(),
            "variances": self._variances.state_dict(),
            "quotients": self._quotients,
            "engines": [engine.state_dict() for engine in self._engines],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, for as many batches; of others, start anew."""
        if len(state["engines"]) != len(self._engines):
            return
        self._squares.load_state_dict(state["squares"])
        self._variances.load_state_dict(state["variances"])
        quotients = state["quotients"]
        self._quotients = None if quotients is None else quotients.cpu()
        for engine, own in zip(self._engines, state["engines"], strict=True):
            engine.load_state_dict(own)

    def _share(
        self,
        seen: SeenPairs,
        quotients: Float[Tensor, "B k"],
        before: Float[Tensor, "B P"],
        distance: float,
    ) -> Float[Tensor, " k"]:
        source = seen.source[seen.places]
        previous = torch.where(source >= 0, before[:, source.clamp(min=0)], torch.nan)
        variance = probe_variance(quotients, previous, size_ratio=self._size_ratio)
        variance = torch.where(seen.change.isfinite(), variance, torch.nan)
        squares = self._squares.updated(seen, seen.change.square() / distance, distance)
        variances = self._variances.updated(seen, variance / distance, distance)
        return noise_share(squares.sqrt(), variances)

    def _cluster_means(self, seen: SeenPairs) -> Float[Tensor, "B k"]:
        """vᵢᵀ H_b vᵢ, of pairs that cannot be told apart the mean; float64, on the CPU."""
        rows = torch.stack([self._of_batch(engine, seen.vectors) for engine in self._engines]).cpu()
        same = (seen.cluster[:, None] == seen.cluster).double()
        return rows @ (same / same.sum(0))

    def _of_batch(self, engine: HessianEngine, vectors: Tensor) -> Float[Tensor, " k"]:
        operator = engine.operator()
        return torch.stack([dot(vector, operator.matvec(vector)) for vector in vectors])
