"""How fast curvature moves: cubic models, tracking of eigenpairs, Lipschitz estimators."""

from lipprof.lipschitz.aggregate import per_tensor
from lipprof.lipschitz.clusters import clusters
from lipprof.lipschitz.cubic import (
    elmo_step,
    newton_threshold,
    newton_threshold_range,
    optimistic_model,
    pessimistic_model,
    regret,
)
from lipprof.lipschitz.drift import DriftEstimator
from lipprof.lipschitz.exact import ExactLipschitz, exact_lipschitz
from lipprof.lipschitz.tensors import Aggregate, TensorCurvature, TensorDrift
from lipprof.lipschitz.tracking import Matching, match_pairs

__all__ = [
    "Aggregate",
    "DriftEstimator",
    "ExactLipschitz",
    "Matching",
    "TensorCurvature",
    "TensorDrift",
    "clusters",
    "elmo_step",
    "exact_lipschitz",
    "match_pairs",
    "newton_threshold",
    "newton_threshold_range",
    "optimistic_model",
    "per_tensor",
    "pessimistic_model",
    "regret",
]
