"""Differences of exact products, the measure of third derivatives.

torch gets some third derivatives wrong without an error (``decompositions``), and so does a custom
function that detaches too much.  What they must agree with is

    D(ε) = (H(θ + ε v) v − H(θ − ε v) v) / 2ε,   |v| = 1,   D → ∇(vᵀ H v),

the whole vector.  In float64 (``double_precision``) ε is so short that it seldom meets a kink of
ReLU or max-pooling, and a product jumps there by no more than that unit's share, where a second
difference of gradients would count the jump 1/ε times.  The model runs on its own fused layers.
All that D shares with the derivative is that products are right (``consistency``).

D is evaluated at falling ε until it agrees with the derivative, or with the D before it: then it
is the derivative that is wrong.  Each ε costs two gradient graphs and two products.
"""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.curvature.guards import undisturbed
from lipprof.curvature.hessian.recompute import weighted_product
from lipprof.curvature.kernels import twice_differentiable
from lipprof.curvature.loss.displacement import displaced
from lipprof.curvature.loss.double_precision import DoublePrecision
from lipprof.curvature.loss.functional import FunctionalLoss
from lipprof.curvature.loss.losses import ProbeLoss
from lipprof.curvature.parameters import ParameterView
from lipprof.linalg.inner import norm

ERROR_LIMIT = 0.01
"""Of ‖D − derivative‖ / ‖D‖.  Measured, derivatives in float32 against D in float64: 2e-7 to 9e-7
on a small CNN, a GPT and a ResNet; wrong ones 0.1 to 1."""
FACTORS = 1e-2, 1e-3, 1e-4
"""Of eps^⅓ ‖θ‖: the steps.  In float64 D is as good from 1e-1 (GPT, no kinks) or 1e-2 (ReLU) down
to 1e-5; in float32 best between 1e-2 and 1e-4 (GPT: 1e-4 relative; ReLU: 2e-3 to 0.1)."""


class Outcome(enum.Enum):
    """What a comparison with differences says of a derivative."""

    AGREES = "right"
    CONTRADICTS = "wrong: differences agree among themselves and not with it"
    UNDECIDED = "unknown: differences do not agree among themselves"


class ProductDifferences:
    """D(ε) of a closure around the present parameters.

    Args:
        loss: the closure.
        view: the parameters.
        double: in float64 by ``torch.func``, or as the closure is, moving the parameters.
    """

    def __init__(self, loss: ProbeLoss, view: ParameterView, *, double: bool) -> None:
        self.loss, self.view = loss, view
        self._product = self._double_product if double else self._own_product
        self._theta = view.snapshot().double() if double else view.snapshot()
        coarsest = max(torch.finfo(parameter.dtype).eps for parameter in view.parameters)
        eps = torch.finfo(torch.float64).eps if double else coarsest
        self._unit = eps ** (1 / 3) * (float(norm(self._theta)) or 1.0)

    def along(
        self, vector: Float[Tensor, " n"]
    ) -> Iterator[tuple[Float[Tensor, " n"], Float[Tensor, " n"]]]:
        """Shorten the step.

        Args:
            vector: v.

        Yields:
            D, and H v at the present parameters up to O(ε²).
        """
        vector = vector.to(self._theta)
        length = float(norm(vector)) or 1.0
        for factor in FACTORS:
            epsilon = factor * self._unit / length
            forth = self._product(self._theta + epsilon * vector, vector)
            back = self._product(self._theta - epsilon * vector, vector)
            yield (forth - back) / (2 * epsilon), (forth + back) / 2

    def product(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """H v at the present parameters."""
        return self._product(self._theta, vector.to(self._theta))

    def _own_product(
        self, point: Float[Tensor, " n"], vector: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        model = self.loss.model
        with displaced(self.view, point), undisturbed(model), twice_differentiable(model):
            return weighted_product(self.loss.terms(), self.view, vector)

    def _double_product(
        self, point: Float[Tensor, " n"], vector: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        shapes = [parameter.shape for parameter in self.view.parameters]
        parts = zip(point.detach().split(self.view.numel), shapes, strict=True)
        theta = [part.view(shape).requires_grad_() for part, shape in parts]
        view = ParameterView(zip(self.view.names, theta, strict=True))
        with undisturbed(self.loss.model), twice_differentiable(self.loss.model):
            return weighted_product(self._double_terms(theta), view, vector)

    def _double_terms(self, theta: Sequence[Tensor]) -> Iterator[tuple[float, Tensor]]:
        torch.manual_seed(self.loss.seed)
        functional = FunctionalLoss(self.loss.model, self.loss.loss, self.view)
        state = {name: _double(tensor) for name, tensor in functional.state().items()}
        for microbatch in self.loss.microbatches():
            with DoublePrecision(), torch.enable_grad():
                value = functional(theta, state, microbatch.arguments)
            yield microbatch.weight, value
            del value


def _double(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64, copy=True) if tensor.is_floating_point() else tensor.clone()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of a derivative with differences."""

    outcome: Outcome
    error: float  # ‖D − derivative‖ / ‖D‖ at the best step
    difference: Float[Tensor, " n"]  # D at the last step
    product: Float[Tensor, " n"]  # H v by the differences' evaluation


def compare(
    derivative: Float[Tensor, " n"] | None,
    vector: Float[Tensor, " n"],
    differences: ProductDifferences,
) -> Comparison:
    """Test ∇(vᵀ H v) by differences.

    Args:
        derivative: to be tested; None: there is none, and D is tested against itself.
        vector: v.
        differences: of the same closure.

    Returns:
        The comparison.
    """
    found, before, best = None, None, float("inf")
    for change, product in differences.along(vector):
        negligible = negligible_size(product, differences.view)
        if derivative is not None:
            best = min(best, relative_difference(derivative, change, negligible))
        outcome = Outcome.UNDECIDED
        if best <= ERROR_LIMIT:
            outcome = Outcome.AGREES
        elif before is not None and _agree(before, change, negligible):
            outcome = Outcome.CONTRADICTS
        found, before = Comparison(outcome, best, change, product), change
        if outcome is not Outcome.UNDECIDED:
            break
    assert found is not None
    return found


def _agree(x: Float[Tensor, " n"], y: Float[Tensor, " n"], negligible: float) -> bool:
    """Zeros do not: the steps may have been lost in rounding."""
    return bool(y.any()) and relative_difference(x, y, negligible) <= ERROR_LIMIT


def negligible_size(product: Float[Tensor, " n"], view: ParameterView) -> float:
    """eps^½ ‖H v‖ / ‖θ‖: a third derivative below it is that of a quadratic, to rounding."""
    size = float(norm(view.snapshot())) or 1.0
    return torch.finfo(view.dtype).eps ** 0.5 * float(norm(product)) / size


def relative_difference(x: Float[Tensor, " n"], y: Float[Tensor, " n"], negligible: float) -> float:
    """‖x − y‖ / max(‖x‖, ‖y‖, negligible), in float64; 0 where both are zero, NaN with either."""
    size = max(float(norm(x)), float(norm(y)), negligible)
    return 0.0 if size == 0 else float(norm(x.double() - y.double())) / size
