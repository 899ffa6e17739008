"""The Hessian of a closure by the cheapest backend that fits, chosen once per run by timing.

``retained``: one more backward through a kept gradient graph; works wherever a second derivative
exists.  ``traced``: see ``curvature.hessian.traced``; faster, as a rule with more memory, and takes
seconds to trace.  ``recomputed``: slower, in the memory of one microbatch; only where a memory
limit leaves no other.  All take the same derivatives by the same formulas.  Still, the first traced
product is compared with a retained one (where memory forbids that, the Hessian is tested for
symmetry), and the gradient at every θ with a plain one.  Where a comparison fails, or tracing does,
the run goes on without it.
"""

import logging
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from lipprof.curvature.hessian.footprint import retained_footprint, traced_footprint
from lipprof.curvature.hessian.recompute import RecomputedHessianOperator
from lipprof.curvature.hessian.retained import HessianOperator, retained_hessian
from lipprof.curvature.hessian.traced import (
    NotTraceableError,
    TracedHessian,
    TracedHessianOperator,
    require_agreement,
    rounding,
)
from lipprof.curvature.loss.functional import FunctionalLoss
from lipprof.curvature.loss.losses import ProbeLoss
from lipprof.curvature.parameters import ParameterView
from lipprof.errors import ConfigError

Backend = Literal["retained", "traced", "recomputed"]
ExactOperator = HessianOperator | TracedHessianOperator | RecomputedHessianOperator
_log = logging.getLogger("lipprof")

TRIALS = 3  # timed products per backend, after a first one, where it matters
WORTHWHILE_S = 2.0  # all products together; for less not even the dry run pays
FIRST_TRACE_S = 0.5  # what a first trace in a process takes more than a later one
SMALLEST_SAVING = 0.05  # below, it is not worth the memory and the check at every θ
LARGEST_SAVING = 0.5  # of the retained products' time; measured 0.01 to 0.54
TRACE_PER_DRY_RUN = 2.5  # seconds of a trace over those of a dry run; measured 2.1 to 2.4


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendChoice:
    """Which backend computes Hessian-vector products, and what that rests on."""

    name: Backend
    reason: str
    seconds_per_matvec: Mapping[str, float] = field(default_factory=dict)  # of those timed
    trace_seconds: float = 0.0
    bytes: Mapping[str, int] = field(default_factory=dict)  # predicted peaks beyond the model


class ClosureHessian:
    """Gives the Hessian of a closure at the present parameters, as often as asked.

    The first call of ``operator`` makes the choice.

    Args:
        loss: the closure.
        view: the parameters.
        backend: ``auto``, or the one to insist on.
        planned: products expected over the whole run.
        memory_limit: bytes that the products may take beyond the model.
    """

    def __init__(
        self,
        loss: ProbeLoss,
        view: ParameterView,
        *,
        backend: Backend | Literal["auto"] = "auto",
        planned: int = 1000,
        memory_limit: int | None = None,
    ) -> None:
        self.choice: BackendChoice | None = None  # None: before the first operator
        self._loss, self._view, self._microbatches = loss, view, loss.microbatches()
        self._functional = FunctionalLoss(loss.model, loss.loss, view)
        self._trace = TracedHessian(self._functional, seed=loss.seed)
        self._wanted, self._planned, self._limit = backend, planned, memory_limit
        self._ready: HessianOperator | None = None  # made while choosing, and still good
        self._seconds: dict[str, float] = {}
        self._bytes: dict[str, int] = {}

    def operator(self) -> ExactOperator:
        """Evaluate the closure; to be called under ``undisturbed`` and ``twice_differentiable``.

        Returns:
            The operator, valid until the parameters change.

        Raises:
            ConfigError: no backend fits the memory limit.
            NotTraceableError: the traced backend was insisted on and does not apply.
            NotDifferentiableError: the loss has no second derivative.
            NonfiniteError: the loss or its gradient is NaN or infinite.
        """
        if self.choice is None:
            self.choice = self._choose()
            _log.info("lipprof: %s products: %s", self.choice.name, self.choice.reason)
        ready, self._ready = self._ready, None
        if ready is not None and self.choice.name == "retained":
            return ready
        try:
            return self._build(self.choice.name)
        except NotTraceableError as error:
            if self._wanted == "traced":
                raise
            name = self._untraced()
            self.choice = replace(self.choice, name=name, reason=str(error))
            _log.warning("lipprof: from traced to %s products from here on. %s", name, error)
            return self._build(name)

    def _build(self, name: Backend) -> ExactOperator:
        if name == "traced":
            return self._trace.operator(self._microbatches)
        if name == "recomputed":
            return RecomputedHessianOperator(self._loss, self._view)
        return retained_hessian(self._loss, self._view)

    def _choose(self) -> BackendChoice:
        sample = None
        if self._limit is not None:
            self._predict_untraced()
        if self._wanted in ("retained", "recomputed"):
            self._require_fit(self._wanted)
            return self._chosen(self._wanted, "It was asked for.")
        try:
            if self._fits("retained"):
                self._ready = retained_hessian(self._loss, self._view)
                sample = self._sample("retained", self._ready)
            if self._wanted == "auto" and sample is not None:
                self._require_worthwhile()
            self._ready = None  # its graph, before the trace takes memory
            self._sample_trace(sample)
        except NotTraceableError as error:
            if self._wanted == "traced":
                raise
            return self._chosen(self._untraced(), str(error))
        if self._wanted == "traced":
            return self._chosen("traced", "It was asked for.")
        if sample is None:
            return self._chosen("traced", "A retained graph would exceed the memory limit.")
        saving = 1 - self._seconds["traced"] / self._seconds["retained"]
        name: Backend = "traced" if saving > SMALLEST_SAVING else "retained"
        return self._chosen(name, f"A traced product saves {saving:.0%} of a retained one.")

    def _chosen(self, name: Backend, reason: str) -> BackendChoice:
        return BackendChoice(
            name=name,
            reason=reason,
            seconds_per_matvec=dict(self._seconds),
            trace_seconds=self._trace.seconds,
            bytes=dict(self._bytes),
        )

    def _require_worthwhile(self) -> None:
        total_s = self._planned * self._seconds["retained"]
        if total_s > WORTHWHILE_S:
            begin = time.perf_counter()
            self._predict_untraced()
            trace_s = TRACE_PER_DRY_RUN * (time.perf_counter() - begin)
            if total_s * LARGEST_SAVING > trace_s + FIRST_TRACE_S:
                return
        raise NotTraceableError(
            f"{self._planned} products of {1e3 * self._seconds['retained']:.3g} ms are too few "
            "for a trace to pay."
        )

    def _sample_trace(self, expected: Tensor | None) -> None:
        """Trace, time, and compare with the expected product, or with the transpose."""
        footprint = traced_footprint(self._trace, self._microbatches)
        self._bytes["traced"] = footprint.peak + 2 * self._vector_bytes  # v, and H v to compare
        if not self._fits("traced"):
            raise NotTraceableError("A traced product would exceed the memory limit.")
        operator = self._trace.operator(self._microbatches)
        product = self._sample("traced", operator)
        if expected is None:
            other = self._vector(1)
            image = operator.matvec(other)
            forth, back = torch.dot(other, product), torch.dot(self._vector(0), image)
            difference, scale = float((forth - back).abs()), float(product.norm() * other.norm())
            if not difference <= rounding(self._view) * scale:
                raise NotTraceableError("The traced Hessian is not symmetric.")
        else:
            rtol = rounding(self._view)
            require_agreement(product, expected, "Hessian-vector product", rtol=rtol)

    def _sample(self, name: Backend, operator: ExactOperator) -> Tensor:
        """H v for a fixed v, with the seconds that one product takes."""
        vector = self._vector(0)
        begin = _now(vector.device)
        product = operator.matvec(vector)
        first = _now(vector.device) - begin
        self._seconds[name] = first
        if self._planned * first > WORTHWHILE_S:
            seconds = []
            for _ in range(TRIALS):
                del product  # before there is another: a vector less of memory
                begin = _now(vector.device)
                product = operator.matvec(vector)
                seconds.append(_now(vector.device) - begin)
            self._seconds[name] = statistics.median(seconds)
        return product

    def _vector(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        vector = torch.randn(self._view.n, generator=generator, dtype=self._view.dtype)
        return vector.to(self._view.device)

    def _predict_untraced(self) -> None:
        """Foresee the peaks of retained and recomputed products."""
        try:
            whole = retained_footprint(self._functional, self._microbatches)
            alone = [retained_footprint(self._functional, [batch]) for batch in self._microbatches]
        except Exception as error:  # of many kinds, all from the closure under fake tensors
            reason = next(iter(str(error).splitlines()), "")
            message = f"The loss cannot be run without data: {type(error).__name__}: {reason}"
            if self._limit is None:
                raise NotTraceableError(message) from error
            raise ConfigError(
                f"memory_limit= cannot be kept, because memory cannot be foreseen. {message}"
            ) from error
        self._bytes["retained"] = whole.peak
        if len(alone) > 1:  # beside it, the gradient and a sum
            self._bytes["recomputed"] = max(one.peak for one in alone) + 2 * self._vector_bytes

    @property
    def _vector_bytes(self) -> int:
        return self._view.n * self._view.dtype.itemsize

    def _fits(self, name: Backend) -> bool:
        return self._limit is None or self._bytes.get(name, 0) <= self._limit

    def _require_fit(self, *names: Backend) -> Backend:
        """Find the first that fits the limit, or refuse with numbers."""
        for name in names:
            if self._fits(name) and (name != "recomputed" or len(self._microbatches) > 1):
                return name
        limit_mb = (self._limit or 0) / 1e6
        needs = ", ".join(f"{key} {size / 1e6:.1f} MB" for key, size in self._bytes.items())
        raise ConfigError(
            f"Hessian-vector products need more than the {limit_mb:.1f} MB that memory_limit= "
            f"leaves them: {needs}. Raise the limit, or give smaller microbatches as probe=."
        )

    def _untraced(self) -> Backend:
        return self._require_fit("retained", "recomputed")


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
