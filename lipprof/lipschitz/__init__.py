"""How fast curvature moves: cubic models, tracking of eigenpairs, Lipschitz estimators."""

from lipprof.lipschitz.acceptance import AcceptanceRule, Trial, Verdict
from lipprof.lipschitz.aggregate import per_tensor
from lipprof.lipschitz.cubic import (
    elmo_step,
    newton_threshold,
    newton_threshold_range,
    optimistic_model,
    pessimistic_model,
    regret,
)
from lipprof.lipschitz.drift import DriftEstimator
from lipprof.lipschitz.eigenarc import EigenARC, EigenArcResult, EigenArcStatus
from lipprof.lipschitz.tensors import Aggregate, TensorCurvature, TensorDrift
from lipprof.lipschitz.tracking import Matching, match_pairs

__all__ = [
    "AcceptanceRule",
    "Aggregate",
    "DriftEstimator",
    "EigenARC",
    "EigenArcResult",
    "EigenArcStatus",
    "Matching",
    "TensorCurvature",
    "TensorDrift",
    "Trial",
    "Verdict",
    "elmo_step",
    "match_pairs",
    "newton_threshold",
    "newton_threshold_range",
    "optimistic_model",
    "per_tensor",
    "pessimistic_model",
    "regret",
]
