"""How fast curvature moves: cubic models, tracking of eigenpairs, Lipschitz estimators."""

from lipprof.lipschitz.acceptance import AcceptanceRule, Trial, Verdict
from lipprof.lipschitz.aggregate import per_tensor
from lipprof.lipschitz.clusters import clusters
from lipprof.lipschitz.cubic import (
    elmo_preconditioner,
    elmo_step,
    newton_threshold,
    newton_threshold_range,
    optimistic_model,
    pessimistic_model,
)
from lipprof.lipschitz.drift import DriftEstimator
from lipprof.lipschitz.eigenarc import EigenARC, EigenArcResult, EigenArcStatus
from lipprof.lipschitz.eigenspaces import Eigenspaces
from lipprof.lipschitz.exact import ExactLipschitz, exact_lipschitz
from lipprof.lipschitz.noise import noise_floor, noise_share, probe_variance
from lipprof.lipschitz.regret import (
    concave_share,
    guaranteed_descent,
    regret,
    step_deviation,
)
from lipprof.lipschitz.rotation import basis_change, principal_angles, rotation_lipschitz
from lipprof.lipschitz.tensors import Aggregate, TensorCurvature, TensorDrift
from lipprof.lipschitz.tracking import Event, Matching, match_pairs

__all__ = [
    "AcceptanceRule",
    "Aggregate",
    "DriftEstimator",
    "EigenARC",
    "EigenArcResult",
    "EigenArcStatus",
    "Eigenspaces",
    "Event",
    "ExactLipschitz",
    "Matching",
    "TensorCurvature",
    "TensorDrift",
    "Trial",
    "Verdict",
    "basis_change",
    "clusters",
    "concave_share",
    "elmo_preconditioner",
    "elmo_step",
    "exact_lipschitz",
    "guaranteed_descent",
    "match_pairs",
    "newton_threshold",
    "newton_threshold_range",
    "noise_floor",
    "noise_share",
    "optimistic_model",
    "per_tensor",
    "pessimistic_model",
    "principal_angles",
    "probe_variance",
    "regret",
    "rotation_lipschitz",
    "step_deviation",
]
