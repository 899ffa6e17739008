"""Hessian-Lipschitz parameters at one point, each estimator an entry of one list.

A profiler that is attached records the drift by itself.  What is here looks at the loss itself
around the point where it was measured, along the eigenvectors that the profiler found:

``eigenarc``
    Alg. 3, on both pairs at once.
``third``
    D³f[v, v, v] = v · ∇λ, with its sign: what Assumption 2 bounds, at this point, exactly.
``gradient``
    ‖∇λ‖, over all directions.
``newton``, ``newton_descent``, ``sgd_descent_...``
    Newton's step γ/|λ| along v alone, and the measured descents of it and of SGD's lr γ.  From
    Newton's follows how far the loss departs from its quadratic model at the length of that step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from examples.lipschitz.presets import RIVAL_LRS
from lipprof.curvature import CurvatureGradients, DisplacedLoss
from lipprof.lipschitz import EigenARC, trial_steps

Numbers = dict[str, Tensor]  # (k,) each, by the name of the series


@dataclass(frozen=True, slots=True)
class Point:
    """Where the surface was measured, and k eigenpairs there."""

    loss: DisplacedLoss
    vectors: Float[Tensor, "k n"]  # oriented so that g·v ≤ 0
    curvature: Float[Tensor, " k"]  # λ, float64
    slope: Float[Tensor, " k"]  # γ = |g·v|, float64

    def along(self, x: Float[Tensor, " k"]) -> float:
        """f(θ + Σ xᵢ vᵢ)."""
        return self.loss(x.to(self.vectors) @ self.vectors)

    def here(self) -> float:
        """f(θ)."""
        return self.along(torch.zeros_like(self.slope))


Estimator = Callable[[Point], Numbers]


class EigenArcEstimator:
    """Alg. 3 with the settings of App. J, pair by rank as in the paper."""

    def __init__(self) -> None:
        self._eigenarc = EigenARC()

    def __call__(self, point: Point) -> Numbers:
        """Adapt L to this point."""
        result = self._eigenarc.update(
            point.along,
            loss=point.here(),
            slope=point.slope,
            curvature=point.curvature,
            rounding=point.loss.rounding,
        )
        return {"eigenarc": result.lipschitz}


class ExactEstimator:
    """Third derivatives at the point: ∇λ = ∇(vᵀ H v) at fixed v (Hellmann-Feynman)."""

    def __init__(self) -> None:
        self._gradients: CurvatureGradients | None = None

    def __call__(self, point: Point) -> Numbers:
        """Differentiate both eigenvalues."""
        if self._gradients is None:  # once: it tests itself at the first point
            self._gradients = CurvatureGradients(point.loss.view, point.loss.loss)
        gradients = self._gradients(point.vectors)
        along = (gradients * point.vectors).double().sum(1)
        return {"third": along, "gradient": gradients.double().norm(dim=1)}


def steps(point: Point) -> Numbers:
    """Measure the descents of Newton's step and of SGD's along each eigenvector."""
    loss = point.here()

    def descents(length: np.ndarray) -> Tensor:
        return torch.tensor([loss - point.along(x) for x in torch.from_numpy(np.diag(length))])

    numbers: Numbers = {}
    for lr in RIVAL_LRS:
        newton, sgd = trial_steps(point.slope.numpy(), point.curvature.numpy(), lr=lr)
        numbers[f"sgd_descent_{lr}"] = descents(sgd)
    return numbers | {"newton": torch.from_numpy(newton), "newton_descent": descents(newton)}


def estimators() -> list[Estimator]:
    """All of them, for one run."""
    return [EigenArcEstimator(), ExactEstimator(), steps]
