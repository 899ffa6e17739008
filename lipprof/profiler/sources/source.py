"""Where the measured loss comes from: what a source is, and the closure over a probe."""

from dataclasses import dataclass
from typing import Any, Protocol

from lipprof.curvature import (
    HessianEngine,
    LossHessian,
    ParameterView,
    ProbeLoss,
    process_count,
    weighted_gradient,
    without_collectives,
)
from lipprof.profiler.budget import Budget
from lipprof.settings import Settings

PLANNED_MEASUREMENTS = 16  # of a run, over whose products a trace is amortised


@dataclass(frozen=True, slots=True)
class Products:
    """How Hessian-vector products are computed."""

    engine: str  # "retained", "traced", "recomputed", "differences"
    relative_error: float = 0.0  # of products by differences or in half precision
    bytes: int = 0  # predicted peak, where a memory limit asked for it


class Source(Protocol):
    """Gives the Hessian of the step about to be taken."""

    @property
    def name(self) -> str:
        """One of ``record.SOURCES``."""
        ...

    preparing_s: float  # spent on this iteration before ``operator``

    @property
    def products(self) -> Products:
        """How they are computed, as known after ``operator``."""
        ...

    def arm(self) -> None:
        """Get ready: the iteration that now begins will be measured."""
        ...

    def operator(self) -> LossHessian:
        """Return the Hessian; called just before the optimizer steps."""
        ...

    def disarm(self) -> None:
        """Let go of everything held for this iteration."""
        ...

    def failed(self, error: Exception) -> None:
        """Take in that a measurement with the operator failed."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on with the same products: plain types."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; that of another kind of source is ignored."""
        ...


class ClosureSource:
    """``loss(model)`` over a fixed probe: free of minibatch noise, and independent of the loop."""

    name = "closure"
    preparing_s = 0.0

    def __init__(
        self, loss: ProbeLoss, view: ParameterView, settings: Settings, limit: int | None
    ) -> None:
        self._tol = settings.tol
        self._alone = False  # whether the closure is known to take no other process
        planned = PLANNED_MEASUREMENTS * Budget(settings).full.expected_matvecs
        self._engine = HessianEngine(
            loss,
            view,
            engine=settings.engine,
            planned=0 if settings.max_overhead else planned,  # a trace may cost too much
            memory_limit=limit,
            check_deterministic=settings.check_deterministic,
            cuda_graph=settings.cuda_graph,
        )

    @property
    def products(self) -> Products:
        """How they are computed."""
        engine = self._engine
        return Products(engine.name, engine.relative_error, engine.product_bytes)

    def arm(self) -> None:
        """Nothing to prepare."""

    def operator(self) -> LossHessian:
        """Evaluate the closure at the present parameters."""
        if process_count() > 1 and not self._alone:
            with without_collectives():
                weighted_gradient(self._engine.loss.terms(), self._engine.view)
            self._alone = True
        operator = self._engine.operator()
        self._engine.warn_of_precision(self._tol)
        return operator

    def disarm(self) -> None:
        """Nothing to let go of."""

    def failed(self, error: Exception) -> None:
        """Try the same again: the next parameters may do."""

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on with the same products."""
        return {"engine": self._engine.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; that of a training step is ignored."""
        if "engine" in state:
            self._engine.load_state_dict(state["engine"])
