"""How fast curvature moves: cubic models, tracking of eigenpairs, Lipschitz estimators."""

from lipprof.lipschitz.aggregate import per_tensor
from lipprof.lipschitz.cubic import (
    elmo_preconditioner,
    elmo_step,
    newton_threshold,
    newton_threshold_range,
    optimistic_model,
    pessimistic_model,
    regret,
)
from lipprof.lipschitz.drift import DriftEstimator
from lipprof.lipschitz.eigenspaces import Eigenspaces
from lipprof.lipschitz.tensors import Aggregate, TensorCurvature, TensorDrift
from lipprof.lipschitz.tracking import Matching, match_pairs

__all__ = [
    "Aggregate",
    "DriftEstimator",
    "Eigenspaces",
    "Matching",
    "TensorCurvature",
    "TensorDrift",
    "elmo_preconditioner",
    "elmo_step",
    "match_pairs",
    "newton_threshold",
    "newton_threshold_range",
    "optimistic_model",
    "per_tensor",
    "pessimistic_model",
    "regret",
]
