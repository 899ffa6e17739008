"""Hessian products by central differences of gradients, where there is no second derivative.

    H v ≈ (g(θ + ε v̂) − g(θ − ε v̂)) ‖v‖ / 2ε,    v̂ = v / ‖v‖

Costs 2 gradients a product, 15 to 20 to find ε, and 6n numbers beside a training step's memory; the
model runs on its own kernels: fused attention, custom functions, compiled modules.  Exact products
(``hessian``) are to be preferred wherever they exist.

1. The error of a product is a/ε + bε²: rounding of g and θ against the third derivative.  Its
   minimum lies near eps^⅓ ℓ, where ℓ = (loss / ‖H‖)^½ is the length over which the curvature of a
   loss surface changes.  From there a ladder of steps is measured on a vector that H amplifies,
   and the pair of neighbouring rungs that agree best gives both the step and its error.
2. Through ReLU and max-pooling the gradient jumps, and a jump over 2ε counts as curvature of any
   size: the rungs then disagree everywhere, and the operator refuses to be built.
3. θ is moved and put back as ``displacement`` says.
"""

import logging
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipprof.curvature.guards import undisturbed
from lipprof.curvature.loss.displacement import displaced
from lipprof.curvature.loss.gradients import weighted_gradient
from lipprof.curvature.loss.graph_walk import graph_nodes
from lipprof.curvature.parameters import ParameterView
from lipprof.errors import (
    CurvatureError,
    NondeterministicCurvatureError,
    NonfiniteError,
    NotDifferentiableError,
)
from lipprof.linalg.inner import norm

_log = logging.getLogger("lipprof")

ERROR_LIMIT = 0.03
"""Worse products are refused.  Smooth networks reach 1e-4 in float32; kinks leave 0.1 to 10."""
PLATEAU_LIMIT = 0.1
"""A second pair of rungs must agree this well: a single one may have missed the kinks by luck."""
RUNG = 4.0  # ratio of neighbouring steps
STARTS = 4.0, 256.0  # of a ladder, in units of eps^⅓ ℓ; the second for half precision within
MAX_PAIRS = 7

_KINKS = re.compile(
    r"(Relu|LeakyRelu|Prelu|RReluWithNoise|Threshold|Hardtanh|Hardsigmoid|Hardswish|Clamp|Abs|Max"
    r"|Min|Maximum|Minimum|AdaptiveMaxPool\w*|MaxPool\w*|Amax|Amin|L1Loss|Sort|Topk)Backward\d*"
)


@runtime_checkable
class LossTerms(Protocol):
    """A loss that can be evaluated at any parameters: ``ProbeLoss``, ``ExpandedStep``."""

    @property
    def model(self) -> nn.Module:
        """The model whose parameters are moved."""
        ...

    def terms(self) -> Iterator[tuple[float, Any]]:
        """Weight and loss, with its graph, of one microbatch after the other."""
        ...


@dataclass(frozen=True, slots=True)
class DifferenceStep:
    """A step length and how good products are with it."""

    epsilon: float  # ‖displacement‖, unit of θ
    relative_error: float  # of H v, over ‖H w‖ of a vector w that H amplifies; an upper estimate


class DifferenceOperator:
    """H = Σ_b w_b ∇²loss_b at the present parameters, by central differences of its gradient.

    A ``SymmetricOperator`` up to ``step.relative_error``; to be used under ``undisturbed``.
    """

    def __init__(
        self,
        view: ParameterView,
        loss: LossTerms,
        *,
        step: DifferenceStep | None = None,
        seed: int = 0,
    ) -> None:
        """Evaluate loss and gradient, and find a step or check the given one.

        Args:
            view: the parameters.
            loss: evaluated twice a product.
            step: of an earlier operator of the same run: kept while it is as good as it was.
            seed: of the vector that the step is calibrated with.

        Raises:
            NotDifferentiableError: no step gives meaningful products.
            NondeterministicCurvatureError: because the gradient changes by itself.
            NonfiniteError: the loss or its gradient is NaN or infinite.
        """
        self.view = view
        self.n, self.dtype, self.device = view.n, view.dtype, view.device
        self.num_gradients = 0
        self._loss = loss
        self._theta = view.snapshot()
        self.loss, self._gradient = self._evaluate()
        self.step = _calibrate(self, step, seed)
        _log.debug("lipprof: differences of gradients over %s", self.step)

    def gradient(self) -> Float[Tensor, " n"]:
        """Σ_b w_b ∇loss_b."""
        return self._gradient

    def matvec(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """One Hessian-vector product, for 2 gradients."""
        return self.product(vector, self.step.epsilon)

    def product(self, vector: Float[Tensor, " n"], epsilon: float) -> Float[Tensor, " n"]:
        """H v with another step than the calibrated one.

        Args:
            vector: v.
            epsilon: ‖displacement‖.

        Returns:
            H v.
        """
        length = float(norm(vector))
        if length == 0:
            return torch.zeros_like(vector)
        shift = vector * (epsilon / length)
        difference = self._gradient_at(self._theta + shift) - self._gradient_at(self._theta - shift)
        return difference.mul_(length / (2 * epsilon))

    def _gradient_at(self, point: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        with displaced(self.view, point):
            return self._evaluate()[1]

    def _evaluate(self) -> tuple[float, Float[Tensor, " n"]]:
        self.num_gradients += 1
        with undisturbed(self._loss.model):
            return weighted_gradient(self._loss.terms(), self.view)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Products with one vector at the steps 4ε and ε."""

    epsilon: float
    change: float  # norm of their difference
    size: float  # norm of the finer one

    def error(self) -> float:
        """Estimate the relative error of the finer product, from above."""
        ratio = self.change / max(self.size, sys.float_info.min)
        return ratio if math.isfinite(ratio) else math.inf

    def step(self) -> DifferenceStep:
        return DifferenceStep(self.epsilon, self.error())


def _calibrate(op: DifferenceOperator, known: DifferenceStep | None, seed: int) -> DifferenceStep:
    """Find the step at which products agree best with those at the neighbouring steps."""
    cube_root = max(torch.finfo(p.dtype).eps for p in op.view.parameters) ** (1 / 3)
    generator = torch.Generator(op.device).manual_seed(seed)
    probe = torch.randn(op.n, generator=generator, dtype=op.dtype, device=op.device)
    probe /= norm(probe).to(probe)
    crude = known.epsilon if known else cube_root * (float(norm(op.view.snapshot())) or 1.0)
    amplified = op.product(probe, crude)
    if not amplified.any():  # linear, or a staircase whose steps are longer than this one
        amplified = _finite_product(op, probe, crude / cube_root).nan_to_num()
    size = float(norm(amplified))
    if size == 0:
        return DifferenceStep(crude, 0.0)
    amplified /= size
    if known is not None:
        pair = _confirmed(op, _pair(op, amplified, known.epsilon), probe)
        if pair.error() <= 2 * known.relative_error:
            return pair.step()
    unit = cube_root * math.sqrt(abs(op.loss) / size) or crude
    failures = []
    for start in STARTS:
        best, second = sorted(_ladder(op, amplified, start * unit), key=_Pair.error)[:2]
        judged = second if second.error() > PLATEAU_LIMIT else _confirmed(op, best, probe)
        if judged.error() <= ERROR_LIMIT:
            return judged.step()
        failures.append(judged)
    raise _refusal(op, min(failures, key=_Pair.error))


def _confirmed(op: DifferenceOperator, pair: _Pair, probe: Float[Tensor, " n"]) -> _Pair:
    """Judge a step that was found on an amplified vector by a random one too."""
    change = _pair(op, probe, pair.epsilon).change
    return replace(pair, change=max(pair.change, change))


def _ladder(op: DifferenceOperator, vector: Float[Tensor, " n"], start: float) -> list[_Pair]:
    """Shorten the step until the agreement gets worse, at least twice."""
    pairs: list[_Pair] = []
    epsilon, coarse = start, _finite_product(op, vector, start)
    while len(pairs) < 2 or (len(pairs) < MAX_PAIRS and pairs[-1].error() <= pairs[-2].error()):
        epsilon /= RUNG
        fine = _finite_product(op, vector, epsilon)
        pairs.append(_Pair(epsilon, float(norm(fine - coarse)), float(norm(fine))))
        coarse = fine
    return pairs


def _pair(op: DifferenceOperator, vector: Float[Tensor, " n"], epsilon: float) -> _Pair:
    fine = _finite_product(op, vector, epsilon)
    coarse = _finite_product(op, vector, RUNG * epsilon)
    return _Pair(epsilon, float(norm(fine - coarse)), float(norm(fine)))


def _finite_product(
    op: DifferenceOperator, vector: Float[Tensor, " n"], epsilon: float
) -> Float[Tensor, " n"]:
    """H v, or NaN where the step leaves the domain of the loss."""
    try:
        return op.product(vector, epsilon)
    except NonfiniteError:
        return torch.full_like(vector, math.nan)


def _refusal(op: DifferenceOperator, pair: _Pair) -> CurvatureError:
    """Find out why products disagree."""
    again = op._evaluate()[1]
    noise = float(norm(again - op.gradient()) / norm(op.gradient()))
    if noise > math.sqrt(torch.finfo(op.dtype).eps):
        return NondeterministicCurvatureError(
            f"Two gradients at the same parameters differ by {noise:.1e}: the loss draws a new "
            "batch or random numbers that lipprof does not seed. Give fixed batches as probe=, use "
            "mode='eval', or draw from torch's global generator."
        )
    with undisturbed(op._loss.model):
        nodes = graph_nodes([loss for _, loss in op._loss.terms()])
    kinks = sorted({match[1] for node in nodes if (match := _KINKS.fullmatch(node.name()))})
    cause = (
        f"the gradient jumps at the kinks of {', '.join(kinks)}. Use exact products, with plain "
        "implementations of the operators that have no second derivative; or smooth activations; "
        "or float64, whose shorter steps may pass between the kinks."
        if kinks
        else "the loss is too rough, or computed in too low a precision. Use exact products, or "
        "compute in float32 or float64."
    )
    return NotDifferentiableError(
        f"Central differences of gradients are meaningless here: products at the steps "
        f"{RUNG * pair.epsilon:.1e} and {pair.epsilon:.1e} differ by {pair.error():.0%}, and at "
        f"most {ERROR_LIMIT:.0%} is accepted; {cause}"
    )
