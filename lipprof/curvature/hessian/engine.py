"""Which operator serves the products of a run: chosen, checked once, and replaced where it fails.

* ``auto``: exact products by the cheaper backend (``backends``); where an operator of the model has
  no second derivative, central differences of gradients, which is said once.
* ``retained``, ``traced``, ``differences``: that one, or an error.

Before the first measurement the operator is built twice and must agree (``consistency``).
"""

import logging
from dataclasses import asdict
from typing import Any, Literal

import torch

from lipprof.curvature.consistency import Consistency, checked_operator
from lipprof.curvature.hessian.backends import Backend, BackendChoice, ClosureHessian
from lipprof.curvature.hessian.differences import DifferenceOperator, DifferenceStep
from lipprof.curvature.hessian.replayed import replayed
from lipprof.curvature.loss.losses import ProbeLoss
from lipprof.curvature.operators import LossHessian
from lipprof.curvature.parameters import ParameterView
from lipprof.curvature.second_order import computing_dtypes
from lipprof.errors import NoSecondDerivativeError

Engine = Literal["auto", "retained", "traced", "differences"]
_log = logging.getLogger("lipprof")


class HessianEngine:
    """Gives the Hessian of a closure at the present parameters, as often as asked.

    Args:
        loss: the closure.
        view: the parameters.
        engine: see the module.
        planned: products expected over the whole run: what a trace is amortised over.
        memory_limit: bytes that the products may take beyond the model.
        check_deterministic: build the first operator twice and compare.
        cuda_graph: replay traced products on CUDA out of a recording (``replayed``).
    """

    def __init__(
        self,
        loss: ProbeLoss,
        view: ParameterView,
        *,
        engine: Engine = "auto",
        planned: int = 1000,
        memory_limit: int | None = None,
        check_deterministic: bool = True,
        cuda_graph: bool = False,
    ) -> None:
        self.loss, self.view = loss, view
        self.consistency: Consistency | None = None
        self._engine: Engine = engine
        self._unchecked, self._cuda_graph = check_deterministic, cuda_graph
        self._told = False
        self._rounding: float | None = None  # of half precision within the loss; None: not seen yet
        self._step: DifferenceStep | None = None
        self._exact: ClosureHessian | None = None
        if engine != "differences":
            backend: Backend | Literal["auto"] = engine
            self._exact = ClosureHessian(
                loss, view, backend=backend, planned=planned, memory_limit=memory_limit
            )

    @property
    def choice(self) -> BackendChoice | None:
        """What was chosen for exact products, and what it rests on; None before, or without."""
        return None if self._exact is None else self._exact.choice

    @property
    def name(self) -> str:
        """What serves: ``retained``, ``traced``, ``recomputed``, ``differences``."""
        if self._exact is None:
            return "differences"
        return self._engine if self._exact.choice is None else self._exact.choice.name

    @property
    def product_bytes(self) -> int:
        """Predicted peak of the products beyond the model, where a memory limit asked for it."""
        return 0 if self.choice is None else self.choice.bytes.get(self.choice.name, 0)

    def warn_of_precision(self, tol: float) -> None:
        """Say once where products are too coarse for a tolerance to be met, and why that may be."""
        floor = self.precision
        if floor <= tol or self._told:
            return
        self._told = True
        _log.warning(
            "lipprof: products with the Hessian are symmetric and repeatable only to %.0e, so "
            "residuals of tol=%.0e cannot be expected. Parameters are %s; does the loss compute in "
            "half precision (autocast)? Use a float32 loss closure, or a larger tol.",
            floor,
            tol,
            ", ".join(sorted({str(p.dtype) for p in self.view.parameters})),
        )

    @property
    def precision(self) -> float:
        """Relative error of products, as far as the check or a difference step shows it."""
        found = self.consistency
        seen = 0.0 if found is None else max(found.asymmetry, found.product)
        return max(seen, self.relative_error)

    @property
    def relative_error(self) -> float:
        """Of a product: by differences (``DifferenceStep``), or in half precision; 0: rounding."""
        return self._rounding or 0.0 if self._step is None else self._step.relative_error

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on with the same products: plain types."""
        exact, step = self._exact, self._step
        return {
            "engine": self._engine,
            "checked": not self._unchecked,
            "choice": exact and exact.choice and asdict(exact.choice),
            "step": step and asdict(step),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as ``state_dict`` says; where another engine is asked for now, choose anew."""
        if state["engine"] != self._engine:
            return
        self._unchecked = self._unchecked and not state["checked"]
        if state["step"] is not None:
            self._step, self._exact = DifferenceStep(**state["step"]), None
        elif self._exact is not None and state["choice"] is not None:
            self._exact.choice = BackendChoice(**state["choice"])

    def operator(self) -> LossHessian:
        """Evaluate the closure; to be called under ``undisturbed`` and ``twice_differentiable``.

        Returns:
            The operator, valid until the parameters change.

        Raises:
            ConfigError: no backend fits the memory limit.
            NotDifferentiableError: the engine that was asked for does not apply.
            NondeterministicCurvatureError: two evaluations differ.
            NonfiniteError: the loss, its gradient or a product is NaN or infinite.
        """
        if self._rounding is None:
            self._rounding = self._half_precision()
        if not self._unchecked:
            return self._build()
        operator, self.consistency = checked_operator(
            self._build, self.loss.model, seed=self.loss.seed
        )
        self._unchecked = False
        return operator

    def _build(self) -> LossHessian:
        if self._exact is not None:
            try:
                operator = self._exact.operator()
                return replayed(operator) if self._cuda_graph else operator
            except NoSecondDerivativeError as error:
                if self._engine != "auto":
                    raise
                _log.warning(
                    "lipprof: central differences of gradients replace exact products. %s", error
                )
                self._exact = None
        operator = DifferenceOperator(self.view, self.loss, step=self._step, seed=self.loss.seed)
        self._step = operator.step
        return operator

    def _half_precision(self) -> float:
        """Half of eps of what the loss computes in, where that is coarser than the parameters."""
        coarsest = max(
            torch.finfo(dtype).eps for dtype in computing_dtypes(next(self.loss.terms())[1])
        )
        return coarsest / 2 if coarsest > torch.finfo(self.view.dtype).eps else 0.0
