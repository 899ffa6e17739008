"""∇_θ λᵢ for a run: by autograd, tested once per network, and by differences where that fails.

The test takes the first vectors that come, and compares one whole gradient with something that does
not share its way of computation, the best that there is:

1. ``float64 differences`` of exact products (``third_check``), for a closure that can be evaluated
   in float64 and is the same function there, H v within ``SAME_FUNCTION``.
2. ``differences`` as the closure is (autocast within, custom kernels, activation checkpoints): on
   smooth networks.
3. ``symmetry``: with u ∥ T = ∇(vᵀ H v), uᵀT = vᵀ∇(uᵀ H v) = vᵀ∇(vᵀ H u), by three nestings.  All
   that is possible for a step that was replayed.  It sees a layer whose derivatives treat what
   varies as constant; a part that is missing altogether it cannot see.

Where differences contradict the derivative, or there is none, they serve in its place (2 products
and 2 graphs per step, at least 2 steps), which is said once; a vector for which they do not agree
among themselves gets NaN.  Where nothing is left, the gradients are refused.

Measured on a CPU, in products H v: one vector 3.0 with its graph on a small CNN, 4.5 on a 4-layer
GPT, each of five 2.5 and 3.9; the first time, with the test, 14 and 12.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.curvature.hessian.retained import HessianOperator
from lipprof.curvature.loss.losses import ProbeLoss
from lipprof.curvature.parameters import ParameterView
from lipprof.curvature.third.check import (
    ERROR_LIMIT,
    Comparison,
    Outcome,
    ProductDifferences,
    compare,
    negligible_size,
    relative_difference,
)
from lipprof.curvature.third.products import third_derivatives
from lipprof.errors import ConfigError, ThirdDerivativeError
from lipprof.linalg.inner import dot, norm

_log = logging.getLogger("lipprof")

SAME_FUNCTION = 0.05
"""Of H v in float64 against the closure's.  Measured: 3e-3 to 3e-2 under bfloat16 autocast; 0.4 for
other dropout masks (p = 0.1)."""
SYMMETRY_LIMIT = 0.01
"""Measured on a GPT: 1e-7 in float32, 2e-4 under bfloat16 autocast; 0.2 to 0.5 through fused
LayerNorm."""

Evaluation = Literal["float64 differences", "differences"]
EVALUATIONS: tuple[Evaluation, ...] = "float64 differences", "differences"


@dataclass(frozen=True, slots=True)
class ThirdDerivativeTest:
    """What the self-test found."""

    evidence: Literal[Evaluation, "symmetry"]
    error: float  # relative, of the derivative by autograd; NaN: it does not exist


class CurvatureGradients:
    """Gives ∇_θ(vᵀ H v) at the present parameters, as often as asked.

    Args:
        view: the parameters.
        loss: the closure, whatever engine serves its products; None: a step that is replayed, whose
            graphs are handed over with the vectors.
        check: test the first gradients.
    """

    def __init__(
        self, view: ParameterView, loss: ProbeLoss | None = None, *, check: bool = True
    ) -> None:
        self.view, self.loss = view, loss
        self.test: ThirdDerivativeTest | None = None
        self._unchecked = check
        self._serving: Evaluation | None = None  # differences, and how they are evaluated

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on without another test: plain types."""
        test = self.test and (self.test.evidence, self.test.error)
        return {"checked": not self._unchecked, "serving": self._serving, "test": test}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._unchecked, self._serving = not state["checked"], state["serving"]
        self.test = state["test"] and ThirdDerivativeTest(*state["test"])

    @property
    def method(self) -> Literal["autograd", "differences"]:
        """What the gradients come from."""
        return "autograd" if self._serving is None else "differences"

    def __call__(
        self, vectors: Float[Tensor, "k n"], operator: HessianOperator | None = None
    ) -> Float[Tensor, "k n"]:
        """Differentiate the Rayleigh quotients of unit vectors; leaves everything undisturbed.

        A closure is evaluated anew, in the modes that the modules are in.  An operator over
        retained graphs that is not needed any more should be dropped before, for its memory.

        Args:
            vectors: one a row.  They share one graph; one by one they need less memory, and a
                graph each.
            operator: retained graphs, built under ``thrice_differentiable``; where there is no
                closure.

        Returns:
            The gradients; loss/param³.

        Raises:
            ConfigError: there is neither a closure nor an operator.
            ThirdDerivativeError: third derivatives do not exist or are wrong, and differences
                cannot serve.
            NotDifferentiableError: see ``third_derivatives``.
            NonfiniteError: the loss or its gradient is NaN or infinite.
        """  # noqa: DOC502 - raised by what it calls
        source = self.loss or operator
        if source is None:
            raise ConfigError(
                "Gradients of eigenvalues need a loss closure, or the retained graphs of a step."
            )
        if self._serving is None:
            found = self._by_autograd(source, vectors)
            if found is not None:
                return found
        return torch.stack([self._by_differences(vector) for vector in vectors])

    def _by_autograd(
        self, source: ProbeLoss | HessianOperator, vectors: Float[Tensor, "k n"]
    ) -> Float[Tensor, "k n"] | None:
        """The gradients; None where differences serve from now on."""
        try:
            found = third_derivatives(source, self.view, vectors)
        except ThirdDerivativeError as error:
            if not self._resort(vectors[0]):
                raise
            _log.warning("lipprof: differences of products replace third derivatives. %s", error)
            return None
        if self._unchecked:
            largest = int(torch.stack([norm(row) for row in found.gradients]).argmax())
            self._check(source, vectors[largest], found.gradients[largest], found.products[largest])
            self._unchecked = False
        return found.gradients if self._serving is None else None

    def _check(
        self,
        source: ProbeLoss | HessianOperator,
        vector: Float[Tensor, " n"],
        gradient: Float[Tensor, " n"],
        product: Float[Tensor, " n"],
    ) -> None:
        for evaluation in EVALUATIONS:
            found = self._compare(gradient, vector, evaluation)
            if found is None or found.outcome is Outcome.UNDECIDED:
                continue
            if not _same_function(found.product, product):
                continue
            self.test = ThirdDerivativeTest(evaluation, found.error)
            if found.outcome is Outcome.CONTRADICTS:
                self._serving = evaluation
                reason = self._wrong(gradient, found.difference, found.error)
                _log.warning(
                    "lipprof: differences of products replace third derivatives. %s", reason
                )
            return
        self._check_symmetry(source, vector, gradient, product)

    def _check_symmetry(
        self,
        source: ProbeLoss | HessianOperator,
        vector: Float[Tensor, " n"],
        gradient: Float[Tensor, " n"],
        product: Float[Tensor, " n"],
    ) -> None:
        size = float(norm(gradient))
        error = 0.0
        if not size <= negligible_size(product, self.view):
            v, u = vector[None], gradient[None] / size
            pair = torch.cat([v, u]), torch.cat([u, v])
            found = third_derivatives(source, self.view, *pair).gradients
            error = max(abs(float(dot(row, vector)) - size) / size for row in found)
        self.test = ThirdDerivativeTest("symmetry", error)
        if not error <= SYMMETRY_LIMIT:
            raise ThirdDerivativeError(
                "The third derivatives of the loss are not symmetric: vᵀ∇(uᵀHv) and uᵀ∇(vᵀHv) "
                f"differ by {error:.1%} (limit {SYMMETRY_LIMIT:.0%}). A layer's derivative treats "
                "as constant what varies: a fused layer that lipprof does not decompose, or a "
                "custom autograd function. Retained graphs must be built under "
                "thrice_differentiable. Give a loss closure, for which differences can serve."
            )

    def _resort(self, vector: Float[Tensor, " n"]) -> bool:
        """Look for differences that agree among themselves."""
        if self.loss is None:
            return False
        product = ProductDifferences(self.loss, self.view, double=False).product(vector)
        for evaluation in EVALUATIONS:
            found = self._compare(None, vector, evaluation)
            if found is None or found.outcome is Outcome.UNDECIDED:
                continue
            if _same_function(found.product, product):
                self._serving = evaluation
                self.test = ThirdDerivativeTest(evaluation, math.nan)
                return True
        return False

    def _by_differences(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        assert self._serving is not None
        found = self._compare(None, vector, self._serving)
        if found is None or found.outcome is Outcome.UNDECIDED:
            return torch.full_like(vector, torch.nan)
        return found.difference.to(vector)

    def _compare(
        self,
        gradient: Float[Tensor, " n"] | None,
        vector: Float[Tensor, " n"],
        evaluation: Evaluation,
    ) -> Comparison | None:
        """None: the closure cannot be evaluated in that way."""
        if self.loss is None:
            return None
        double = evaluation == "float64 differences"
        try:
            return compare(
                gradient, vector, ProductDifferences(self.loss, self.view, double=double)
            )
        except Exception as error:  # noqa: BLE001 - of many kinds, where a closure insists on float32
            _log.debug("lipprof: no %s: %s", evaluation, error)
            return None

    def _wrong(
        self, gradient: Float[Tensor, " n"], truth: Float[Tensor, " n"], error: float
    ) -> str:
        missing = (gradient.to(truth) - truth).split(self.view.numel)
        shares = torch.stack([norm(part) for part in missing])
        name = self.view.names[int(shares.argmax())]
        return (
            f"∇(vᵀHv) by autograd is off by {error:.1%} of its norm (limit {ERROR_LIMIT:.0%}), "
            f"most in {name!r}: some operator's third derivative is wrong."
        )


def _same_function(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> bool:
    return relative_difference(x, y, 0.0) <= SAME_FUNCTION
