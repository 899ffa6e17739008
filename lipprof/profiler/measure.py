"""One measurement, from the Hessian operator to a ``Measurement``; and what passes on to the next.

Between measurements this holds θ and the Hessian's diagonal, 2n numbers, and what ``pairs`` and
``tensors`` keep.
"""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.advice import Advisor, Recommendation
from lipprof.curvature import (
    LossHessian,
    ParameterView,
    Partition,
    ProbeLoss,
    Stability,
    stability,
)
from lipprof.errors import ConfigError, NonfiniteError
from lipprof.linalg import DiagonalEstimate, RitzPairs, eigenpairs, hutchinson
from lipprof.linalg.inner import norm
from lipprof.lipschitz import Eigenspaces
from lipprof.profiler.budget import Work
from lipprof.profiler.estimates.blocks import BlockObserver, block_names
from lipprof.profiler.estimates.candidates import CandidateObserver, wants_candidates
from lipprof.profiler.estimates.estimators import LipschitzObserver
from lipprof.profiler.estimates.noise import BatchNoise
from lipprof.profiler.estimates.pairs import PairObserver
from lipprof.profiler.estimates.tensors import TensorObserver
from lipprof.profiler.memory import MemoryShare
from lipprof.profiler.sources.source import Products
from lipprof.record import EDGE_TOL, ENGINES, SOURCES, Measurement, Status, recorded_evidence
from lipprof.settings import Settings

_log = logging.getLogger("lipprof")


class Observer:
    """Measures the surface at successive parameters and follows what it sees."""

    def __init__(
        self,
        view: ParameterView,
        partition: Partition,
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        memory: MemoryShare,
        loss: ProbeLoss | None,
        noise: BatchNoise | None,
    ) -> None:
        self.view, self.partition, self.optimizer = view, partition, optimizer
        self.settings, self.memory = settings, memory
        self.advisor = Advisor.of(partition.names, settings)
        self.pairs = PairObserver(settings, partition.numel)
        self.blocks = BlockObserver(settings, memory)
        self.block_names = block_names(view, settings)
        self.lipschitz = LipschitzObserver(settings, view, partition, loss, noise)
        self.tensors = TensorObserver(settings, partition.numel)
        self.candidates: CandidateObserver | None = None
        if wants_candidates(settings):
            self.candidates = CandidateObserver(settings, optimizer, view, partition, loss)
        self.recommendation: Recommendation | None = None
        self.diagonal: Float[Tensor, " n"] | None = None
        self._parameters: Float[Tensor, " n"] | None = None  # at the newest spectrum
        self._seen_at: Float[Tensor, " n"] | None = None  # at the newest measurement, failed or not
        self._edge_told = False

    def measure(
        self, operator: LossHessian, iteration: int, work: Work, products: Products, source: str
    ) -> Measurement:
        """Compute everything that can be known before the optimizer's step.

        Args:
            operator: the Hessian at the present parameters.
            iteration: completed optimizer steps.
            work: how much of it.
            products: how those of the operator are computed.
            source: where its loss comes from, one of ``SOURCES``.

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
        edge = self._edge(operator, gradient, products) if work.stability else None
        parameters = self.view.snapshot()
        distance, before = np.nan, self._seen_at if self._parameters is None else self._parameters
        if before is not None:
            distance = float(norm(parameters - before))
        fields = self.pairs.observe(pairs, work.top, gradient, distance)
        if self.pairs.seen is not None:
            rate = float(self.optimizer.param_groups[0]["lr"])
            fields |= self.lipschitz.observe(self.pairs.seen, operator, distance, rate)
        fields |= self.tensors.observe(diagonal, gradient, distance)
        if self.candidates is not None:
            fields = _added(fields, self.candidates.observe(operator, gradient, fields))
        if work.blocks:
            fields = _added(fields, self.blocks.observe(operator, products.bytes, fields))
        self.diagonal = None if diagonal is None else diagonal.diagonal
        self._parameters = self._seen_at = parameters
        paid = work.probes + sum(part.num_matvecs for part in (pairs, edge) if part)
        fields["num_matvecs"] = paid + fields.get("num_matvecs", 0)
        measurement = Measurement.blank(
            pairs=self.pairs.axis,
            tensors=len(self.partition.names),
            blocks=len(self.block_names),
            iteration=iteration,
            loss=operator.loss,
            grad_norm=grad_norm,
            distance=distance,
            source=SOURCES.index(source),
            edge_ratio=edge.edge_ratio if edge else np.nan,
            edge_residual=edge.residual if edge else np.nan,
            engine=ENGINES.index(products.engine),
            product_error=products.relative_error,
            status=Status.CONVERGED
            if pairs is None or bool(pairs.converged.all())
            else Status.UNCONVERGED,
            **fields,
        )
        evidence = recorded_evidence(measurement, self.partition.names, self.partition.numel)
        rule = self.advisor.rule
        if (rule.needs_lipschitz and diagonal is None) or (
            rule.needs_candidates and evidence.first is None
        ):
            return measurement
        self.recommendation = self.advisor.advise(evidence)
        return replace(measurement, recommendation=self.recommendation.choice)

    def outline(self, iteration: int, reason: str, *, gradient: bool) -> Measurement:
        """Record what can be known without the loss: for a measurement that failed.

        Args:
            iteration: completed optimizer steps.
            reason: why it failed.
            gradient: whether the loop's own gradient is that of the loss to be measured.

        Returns:
            The measurement, with the distance to the one before and, where wanted, the norms of
            the gradient that the optimizer is about to step on.
        """
        parameters, distance = self.view.snapshot(), np.nan
        if self._seen_at is not None:
            distance = float(norm(parameters - self._seen_at))
        self._seen_at = parameters
        fields = {}
        live = self._live_gradient() if gradient else None
        if live is not None:
            parts = [float(norm(part)) for part in live.split(self.partition.numel)]
            fields = {"grad_norm": float(norm(live)), "tensor_grad_norm": np.array(parts)}
        return Measurement.blank(
            pairs=self.pairs.axis,
            tensors=len(self.partition.names),
            blocks=len(self.block_names),
            iteration=iteration,
            distance=distance,
            source=SOURCES.index("hooks") if fields else 0,
            status=Status.FAILED,
            reason=reason,
            **fields,
        )

    def with_step(self, measurement: Measurement) -> Measurement:
        """Add what the optimizer's step, just taken, did.

        Args:
            measurement: the newest of this observer.

        Returns:
            The measurement with ``step_norm`` and, where it has them, with what the step made of
            the pairs (``step_projection``, ``regret``) and of what was foreseen.
        """
        if self._seen_at is None:
            return measurement
        step = self.view.snapshot() - self._seen_at
        measurement = replace(measurement, step_norm=float(norm(step)))
        failed = measurement.status is Status.FAILED
        if self.candidates is not None and self.candidates.observed and not failed:
            achieved, paid = self.candidates.achieved(), measurement.num_losses + 1
            measurement = replace(measurement, achieved_descent=achieved, num_losses=paid)
        if failed or self.pairs.seen is None:
            return measurement
        return replace(measurement, **self.lipschitz.observe_step(self.pairs.seen, step))

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly, between two steps."""
        return {
            "parameters": self._parameters,
            "seen_at": self._seen_at,
            "pairs": self.pairs.state_dict(),
            "lipschitz": self.lipschitz.state_dict(),
            "tensors": self.tensors.state_dict(),
            "advisor": self.advisor.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, from whatever device."""
        self.tensors.load_state_dict(state["tensors"])
        self.pairs.load_state_dict(state["pairs"])
        self.lipschitz.load_state_dict(state["lipschitz"])
        self.advisor.load_state_dict(state["advisor"])
        self._parameters, self._seen_at = (
            None if state[name] is None else state[name].to(self.view.device)
            for name in ("parameters", "seen_at")
        )
        self.recommendation = None

    @property
    def eigenspaces(self) -> Eigenspaces | None:
        """The converged pairs of the newest measurement, for an optimizer; None: it has none."""
        seen = self.pairs.seen
        if seen is None or not seen.converged.any():
            return None
        return Eigenspaces(
            self.view.parameters,
            seen.vectors if bool(seen.converged.all()) else seen.vectors[seen.converged],
            seen.values[seen.converged],
            self.lipschitz.serving[seen.converged],
        )

    @property
    def lent_places(self) -> list[int]:
        """Where the ``eigenspaces`` are on the run file's pair axis."""
        seen = self.pairs.seen
        return [] if seen is None else seen.places[seen.converged].tolist()

    @property
    def collapsing(self) -> bool:
        """Whether all parameters have gone first-order while training stops moving."""
        if self.recommendation is None:
            return False
        ratio = self.tensors.last_distance_ratio
        return self.advisor.collapsing(self.recommendation, ratio)

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
            parts=self.partition.numel,
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
                gradient=gradient if (live := self._live_gradient()) is None else live,
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

    def _live_gradient(self) -> Float[Tensor, " n"] | None:
        """What the optimizer is about to step on; None where ``.grad`` is empty."""
        live = [parameter.grad for parameter in self.view.parameters]
        if all(gradient is None for gradient in live):
            return None
        flat = self.view.flatten([
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(self.view.parameters, live, strict=True)
        ])
        scale = getattr(self.optimizer, "grad_scale", None)  # fused ones unscale by themselves
        return flat if scale is None else flat.div_(scale)


def _added(fields: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Fields of a measurement with further ones; costs add up."""
    costs = {
        name: fields.get(name, 0) + more.get(name, 0) for name in ("num_matvecs", "num_losses")
    }
    return fields | more | costs
