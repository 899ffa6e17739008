"""One measurement, from the Hessian operator to a ``Measurement``; and what passes on to the next.

Between measurements this holds θ, the eigenvectors and the Hessian's diagonal, together
(top + bottom + 2) · n numbers, and what ``lipprof.lipschitz.tensors`` keeps.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.advice import Advisor, Recommendation
from lipprof.curvature import LossHessian, ParameterView, Stability, stability
from lipprof.errors import ConfigError, NonfiniteError
from lipprof.linalg import DiagonalEstimate, RitzPairs, eigenpairs, hutchinson
from lipprof.linalg.inner import norm, project
from lipprof.lipschitz import (
    DriftEstimator,
    Eigenspaces,
    TensorDrift,
    elmo_step,
    match_pairs,
    newton_threshold,
    newton_threshold_range,
    per_tensor,
    regret,
)
from lipprof.profiler.budget import Work
from lipprof.profiler.memory import MemoryShare
from lipprof.profiler.sources import Products
from lipprof.record import EDGE_TOL, ENGINES, Measurement, Status, recorded_evidence
from lipprof.settings import Settings

_log = logging.getLogger("lipprof")


@dataclass(frozen=True, slots=True)
class _Point:
    """What was seen at one measurement, kept for comparison with the next."""

    parameters: Float[Tensor, " n"]
    pairs: RitzPairs | None
    places: list[int]  # of the pairs on the run file's pair axis


KEPT_VECTORS = 3
"""Vectors of n, besides the eigenvectors, that an ``Observer`` keeps or makes in passing: θ twice
and the diagonal."""


class Observer:
    """Measures the surface at successive parameters and follows what it sees."""

    def __init__(
        self,
        view: ParameterView,
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        memory: MemoryShare,
    ) -> None:
        self.view, self.optimizer = view, optimizer
        self.settings, self.memory = settings, memory
        self._edge_told = False
        self.advisor = Advisor(
            view.names,
            view.numel,
            rule=settings.rule,
            threshold=settings.threshold,
            hysteresis=settings.hysteresis,
            dwell=settings.dwell,
        )
        drift: dict[str, Any] = dict(
            alpha=settings.alpha,
            epsilon=settings.epsilon,
            bias_correction=settings.bias_correction,
        )
        self.pair_drift = DriftEstimator(**drift)
        self.tensor_drift = TensorDrift(
            view.numel,
            aggregate=settings.aggregate,
            denoise=settings.denoise,
            distance_floor=settings.distance_floor,
            **drift,
        )
        self.recommendation: Recommendation | None = None
        self.diagonal: Float[Tensor, " n"] | None = None
        self._last: _Point | None = None

    def measure(
        self, operator: LossHessian, iteration: int, work: Work, products: Products
    ) -> Measurement:
        """Compute everything that can be known before the optimizer's step.

        Args:
            operator: the Hessian at the present parameters.
            iteration: completed optimizer steps.
            work: how much of it.
            products: how those of the operator are computed.

        Returns:
            The measurement, without the step's projections (``with_step``), time and cost in
            seconds, which the caller knows.

        Raises:
            NonfiniteError: the gradient or a Hessian-vector product is not finite.
        """
        gradient = operator.gradient()
        grad_norm = float(norm(gradient))
        if not np.isfinite(grad_norm):
            raise NonfiniteError(f"The gradient is not finite (norm {grad_norm}).")
        pairs = self._eigenpairs(operator, work, products)
        diagonal = self._diagonal(operator, work, pairs)
        places = [*range(work.top), *range(self._axis - work.bottom, self._axis)]
        edge = self._edge(operator, gradient, products) if work.stability else None
        parameters = self.view.snapshot()
        distance = float("nan")
        if self._last is not None:
            distance = float(norm(parameters - self._last.parameters))
        fields = self._observe_pairs(pairs, places, gradient, distance)
        fields |= self._observe_tensors(diagonal, gradient, distance)
        self.diagonal = None if diagonal is None else diagonal.diagonal
        self._last = _Point(parameters, pairs, places)
        measurement = Measurement.blank(
            pairs=self._axis,
            tensors=len(self.view.names),
            iteration=iteration,
            loss=operator.loss,
            grad_norm=grad_norm,
            distance=distance,
            num_matvecs=work.probes + sum(part.num_matvecs for part in (pairs, edge) if part),
            edge_ratio=edge.edge_ratio if edge else np.nan,
            edge_residual=edge.residual if edge else np.nan,
            engine=ENGINES.index(products.engine),
            product_error=products.relative_error,
            status=Status.CONVERGED
            if pairs is None or bool(pairs.converged.all())
            else Status.UNCONVERGED,
            **fields,
        )
        if diagonal is None:
            return measurement
        self.recommendation = self.advisor.advise(iteration, **recorded_evidence(measurement))
        return replace(measurement, recommendation=self.recommendation.choice)

    @property
    def _axis(self) -> int:
        """Length of the run file's pair axis."""
        return self.settings.top + self.settings.bottom

    def _eigenpairs(
        self, operator: LossHessian, work: Work, products: Products
    ) -> RitzPairs | None:
        settings = self.settings
        if work.top + work.bottom == 0:
            return None
        return eigenpairs(
            operator,
            top=work.top,
            bottom=work.bottom,
            tol=settings.tol,
            max_matvecs=settings.max_matvecs,
            seed=settings.seed,
            **self.memory.basis(
                operator, work.top + work.bottom, products.bytes, settings.basis_size
            ),
        )

    def _diagonal(
        self, operator: LossHessian, work: Work, pairs: RitzPairs | None
    ) -> DiagonalEstimate | None:
        if work.probes == 0:
            return None
        return hutchinson(
            operator,
            probes=work.probes,
            seed=self.settings.seed,
            parts=self.view.numel,
            known=pairs,
        )

    def _edge(
        self, operator: LossHessian, gradient: Float[Tensor, " n"], products: Products
    ) -> Stability | None:
        """How far the step about to be taken is from its edge of stability; None: no telling."""
        try:
            return stability(
                operator,
                self.optimizer,
                gradient=self._live_gradient(gradient),
                tol=EDGE_TOL,
                max_matvecs=self.settings.max_matvecs,
                seed=self.settings.seed,
                **self.memory.basis(operator, 1, products.bytes, self.settings.basis_size),
            )
        except ConfigError as error:
            if not self._edge_told:
                _log.warning("lipprof: the edge of stability is not measured. %s", error)
            self._edge_told = True
            return None

    def _live_gradient(self, otherwise: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """What the optimizer is about to step on; where ``.grad`` is empty, something like it."""
        live = [parameter.grad for parameter in self.view.parameters]
        if all(gradient is None for gradient in live):
            return otherwise
        return self.view.flatten([
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(self.view.parameters, live, strict=True)
        ])

    def _observe_pairs(
        self,
        pairs: RitzPairs | None,
        places: list[int],
        gradient: Float[Tensor, " n"],
        distance: float,
    ) -> dict[str, Any]:
        if pairs is None:
            return {}
        projection = project(pairs.vectors, gradient)
        pairs.vectors.mul_(torch.where(projection > 0, -1, 1).to(pairs.vectors)[:, None])  # eq. 1
        slope = projection.abs().cpu()
        overlap = torch.full_like(slope, torch.nan)
        if self._last is not None and self._last.pairs is not None:
            overlap = self._follow_pairs(pairs, places, self._last, distance)
        lipschitz = self._pair_lipschitz(places)
        model = {"slope": slope, "curvature": pairs.values}
        mass = [part.double().square().sum(1) for part in pairs.vectors.split(self.view.numel, 1)]
        numbers = {
            "eigenvalue": pairs.values,
            "residual": pairs.residuals,
            "overlap": overlap,
            "grad_projection": -slope,
            "lipschitz_drift": lipschitz,
            "elmo_step": elmo_step(**model, lipschitz=lipschitz),
            "newton_threshold": newton_threshold(**model),
            "eigenvector_mass": torch.stack(mass, 1).cpu(),
        }
        fields = {name: self._placed(x, places).numpy() for name, x in numbers.items()}
        converged = np.zeros(self._axis, np.int8)
        converged[places] = pairs.converged
        return fields | {"converged": converged}

    def _pair_lipschitz(self, places: list[int]) -> Float[Tensor, " k"]:
        """The L that is lent and recorded of the pairs at these places; NaN: unknown."""
        drift = self.pair_drift.lipschitz()
        if drift is None:
            return torch.full((len(places),), torch.nan, dtype=torch.float64)
        return drift[places]

    @property
    def eigenspaces(self) -> Eigenspaces | None:
        """The converged pairs of the newest measurement; None where it has none."""
        if self._last is None or self._last.pairs is None:
            return None
        pairs = self._last.pairs
        if not pairs.converged.any():
            return None
        kept = pairs.converged
        whole = bool(kept.all())
        return Eigenspaces(
            self.view.parameters,
            pairs.vectors if whole else pairs.vectors[kept.to(pairs.vectors.device)],
            pairs.values[kept],
            self._pair_lipschitz(self._last.places)[kept],
        )

    def _placed(self, numbers: Tensor, places: list[int], missing: float = torch.nan) -> Tensor:
        """Put the pairs' numbers at their places on the pair axis."""
        placed = numbers.new_full((self._axis, *numbers.shape[1:]), missing)
        placed[places] = numbers
        return placed

    def _follow_pairs(
        self, pairs: RitzPairs, places: list[int], last: _Point, distance: float
    ) -> Float[Tensor, " k"]:
        """Update the pairs' drift; a pair that did not converge at both ends of it is left out."""
        previous = last.pairs
        assert previous is not None
        matching = match_pairs(pairs.vectors, previous.vectors)
        row = matching.source.clamp(min=0)
        known = matching.found & pairs.converged & previous.converged[row]
        change = torch.where(known, pairs.values - previous.values[row], torch.nan)
        source = torch.where(matching.found, torch.tensor(last.places)[row], -1)
        self.pair_drift.follow(self._placed(source, places, missing=-1))
        self.pair_drift.update(self._placed(change, places), distance)
        return matching.overlap

    def _observe_tensors(
        self,
        estimate: DiagonalEstimate | None,
        gradient: Float[Tensor, " n"],
        distance: float,
    ) -> dict[str, Any]:
        squares = [part.double().square().sum() for part in gradient.split(self.view.numel)]
        fields: dict[str, Any] = {"tensor_grad_norm": torch.stack(squares).sqrt().cpu().numpy()}
        if estimate is None:
            return fields
        known = self.tensor_drift.update(estimate, distance)
        how = "max" if self.settings.aggregate == "max" else "mean"
        slope = per_tensor(gradient.abs(), self.view.numel, how).cpu()
        low, high = newton_threshold_range(
            slope=slope, curvature=known.curvature, stderr=known.curvature_stderr
        )
        numbers = {
            "tensor_curvature": known.curvature,
            "tensor_curvature_stderr": known.curvature_stderr,
            "tensor_lipschitz": known.lipschitz,
            "tensor_lipschitz_upper": known.lipschitz_upper,
            "tensor_slope": slope,
            "tensor_threshold": newton_threshold(slope=slope, curvature=known.curvature),
            "tensor_threshold_low": low,
            "tensor_threshold_high": high,
        }
        trace = {"trace": estimate.trace, "trace_stderr": estimate.trace_stderr}
        return fields | trace | {name: x.numpy() for name, x in numbers.items()}

    def with_step(self, measurement: Measurement) -> Measurement:
        """Add what the optimizer's step, just taken, did in each eigenspace.

        Args:
            measurement: the newest of this observer.

        Returns:
            The measurement with ``step_projection`` and ``regret``.
        """
        if self._last is None or self._last.pairs is None:
            return measurement
        step = self.view.snapshot() - self._last.parameters
        along = self._placed(project(self._last.pairs.vectors, step).cpu(), self._last.places)
        regrets = regret(
            along,
            slope=-torch.tensor(measurement.grad_projection),
            curvature=torch.tensor(measurement.eigenvalue),
            lipschitz=torch.tensor(measurement.lipschitz_drift),
        )
        return replace(measurement, step_projection=along.numpy(), regret=regrets.numpy())

    @property
    def collapsing(self) -> bool:
        """Whether all parameters have gone first-order while training stops moving."""
        if self.recommendation is None:
            return False
        ratio = self.tensor_drift.last_distance_ratio
        return self.advisor.collapsing(self.recommendation, ratio)
