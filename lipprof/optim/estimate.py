# pyright: reportPrivateImportUsage=false
"""Alg. 2 without a profiler: L of every unit from the drift of the second optimizer's diagonal.

Either the unit, a tensor or several, has the eigenvalue λ = mean h (``trace``), or each entry of
the diagonal is an eigenvalue of its own (the paper's footnote 2) and their L are aggregated
(``mean``, ``max``).  Per observation |Δλ| / ‖Δθ‖ is averaged; eq. 8 compares it with 3λ²/γ, λ the
mean of h and γ the mean of |g| over the unit, g being the gradient of the step about to be taken.

The mean commutes with the moving average, so one number per unit is averaged; only the
maximum needs one per entry.  Memory: a copy of the parameters, and for the maximum twice as much
again.  One host synchronisation per observation and one per advice, none in between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from lipprof.advice import Advisor, Evidence, Recommendation, Rule
from lipprof.errors import ConfigError
from lipprof.lipschitz import Aggregate, DriftEstimator, newton_threshold, per_tensor
from lipprof.optim.arm import check_choice

Diagonal = Mapping[Tensor, Tensor]


@runtime_checkable
class TakesCurvature(Protocol):
    """What a second optimizer offers when it works from a diagonal of the Hessian, as Sophia."""

    def observe_curvature(self, diagonal: Diagonal) -> None:
        """Take in an estimate, loss/param², by parameter."""
        ...

    def diagonal(self) -> dict[Tensor, Tensor]:
        """Give the present average in true units."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateSettings:
    """Validated settings; see ``Advisor`` and ``DriftEstimator`` for their meaning."""

    rule: Rule
    threshold: float
    hysteresis: float
    dwell: int
    warmup: int
    aggregate: Aggregate
    alpha: float
    epsilon: float
    bias_correction: bool
    distance_floor: float

    def __post_init__(self) -> None:
        check_choice("aggregate", self.aggregate, get_args(Aggregate))
        if not 0 <= self.alpha < 1 or not self.epsilon > 0 or not self.distance_floor >= 0:
            raise ConfigError(
                f"Got alpha={self.alpha}, epsilon={self.epsilon}, "
                f"distance_floor={self.distance_floor}: expected alpha in [0, 1), epsilon > 0 and "
                "distance_floor >= 0."
            )

    @property
    def moments(self) -> set[int]:
        """Iterations at which a rule that needs no measurement may change its answer."""
        return {self.warmup, *self.rule.moments} if self.rule.fixed else set()

    def advise(self, iteration: int, names: Sequence[str], numel: Sequence[int]) -> Recommendation:
        """Ask a rule that needs no measurement.

        Args:
            iteration: completed optimizer steps.
            names: of the units.
            numel: parameters of each.

        Returns:
            The recommendation.
        """
        return Advisor.of(names, self).advise(Evidence.none(iteration, names, numel))

    def build(
        self, names: Sequence[str], params: Sequence[Tensor], numel: Sequence[int]
    ) -> "DiagonalEstimate":
        """Make an estimate that has seen nothing yet.

        Args:
            names: of the units.
            params: the parameters.
            numel: parameters of each unit.

        Returns:
            The estimate.

        Raises:
            ConfigError: the advisor refuses its options.
        """  # noqa: DOC502
        return DiagonalEstimate(
            names,
            params,
            numel,
            aggregate=self.aggregate,
            drift=DriftEstimator(
                alpha=self.alpha,
                epsilon=self.epsilon,
                bias_correction=self.bias_correction,
                distance_floor=self.distance_floor,
            ),
            advisor=Advisor.of(names, self),
        )


class DiagonalEstimate:
    """From diagonals at successive observations to a recommendation per unit."""

    def __init__(
        self,
        names: Sequence[str],
        params: Sequence[Tensor],
        numel: Sequence[int],
        *,
        aggregate: Aggregate,
        drift: DriftEstimator,
        advisor: Advisor,
    ) -> None:
        self._names, self._params = list(names), list(params)
        self._numel = list(numel)  # of each unit
        self._aggregate: Aggregate = aggregate
        self._drift = drift
        self._advisor = advisor
        self._previous: list[Tensor] | None = None  # θ at the last observation
        self._curvature: Tensor | None = None  # λ per unit
        self.ready = False  # whether an observation waits for its advice

    def observe(self, before: Diagonal, after: Diagonal, seen: set[Tensor]) -> None:
        """Take in what one observation changed.

        Args:
            before: the diagonal by parameter, loss/param²; parameters not known yet are left out.
            after: the same after the observation.
            seen: the parameters that were observed.
        """
        now = [p.detach().clone() for p in self._params]
        if self._previous is not None:
            known = seen & before.keys()
            change = {p: after[p] - before[p] for p in self._params if p in known}
            moved = torch._foreach_norm(torch._foreach_sub(now, self._previous))
            norms = torch.stack([norm.double().to(now[0].device) for norm in moved])
            self._drift.update(self._changes(change), float(norms.norm()))
        self._previous = now
        self._curvature = self._mean(after)
        self.ready = self._drift.lipschitz() is not None

    def advise(self, iteration: int) -> Recommendation:
        """Recommend, with γ taken from the gradients that lie in ``.grad`` now.

        Returns:
            The recommendation, hysteresis applied.
        """
        lipschitz, curvature = self._drift.lipschitz(), self._curvature
        assert lipschitz is not None
        assert curvature is not None
        if self._aggregate == "max":
            lipschitz = per_tensor(lipschitz, self._numel, "max")
        slope = self._mean({p: p.grad.abs() for p in self._params if p.grad is not None})
        threshold = newton_threshold(slope=slope, curvature=curvature)
        numbers = torch.stack([lipschitz, threshold, curvature, slope]).cpu().numpy()
        self.ready = False
        evidence = Evidence.exact(
            iteration,
            self._names,
            self._numel,
            lipschitz=numbers[0],
            threshold=numbers[1],
            curvature=numbers[2],
            slope=numbers[3],
        )
        return self._advisor.advise(evidence)

    def collapsing(self, recommendation: Recommendation) -> bool:
        """Tell whether everything is first-order and has stopped moving; see ``Advisor``."""
        return self._advisor.collapsing(recommendation, self._drift.last_distance_ratio)

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly."""
        return {
            "drift": self._drift.state_dict(),
            "advisor": self._advisor.state_dict(),
            "previous": self._previous,
            "curvature": self._curvature,
            "ready": self.ready,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, on the devices of the parameters."""
        device = self._params[0].device
        drift: dict[str, object] = {
            key: value.to(device) if isinstance(value, Tensor) else value
            for key, value in state["drift"].items()
        }
        self._drift.load_state_dict(drift)
        self._advisor.load_state_dict(state["advisor"])
        previous, curvature = state["previous"], state["curvature"]
        self._previous = previous and [t.to(p) for t, p in zip(previous, self._params, strict=True)]
        self._curvature = None if curvature is None else curvature.to(device)
        self.ready = state["ready"]

    def _changes(self, change: Diagonal) -> Tensor:
        if self._aggregate == "trace":
            return self._mean(change)
        entries = self._flat(change).abs()
        return per_tensor(entries, self._numel, "mean") if self._aggregate == "mean" else entries

    def _mean(self, by_parameter: Diagonal) -> Tensor:
        return per_tensor(self._flat(by_parameter), self._numel, "mean")

    def _flat(self, by_parameter: Diagonal) -> Tensor:
        """Concatenate in flat order, NaN for a parameter without an entry."""
        device = self._params[0].device
        parts = [
            by_parameter[p] if p in by_parameter else torch.full_like(p, torch.nan)
            for p in self._params
        ]
        return torch.cat([part.detach().reshape(-1).to(device) for part in parts])
