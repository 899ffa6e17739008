"""From a loss to a matrix-free operator of second derivatives; the only home of torch.autograd."""

from lipprof.curvature.blocks import (
    BlockSpec,
    BlockSpectra,
    block_spectra,
    blocks_of,
    diagonal_blocks,
)
from lipprof.curvature.consistency import Consistency, checked_operator
from lipprof.curvature.ggn import GaussNewtonOperator, gauss_newton
from lipprof.curvature.guards import (
    RandomState,
    clone_buffers,
    is_probing,
    probing,
    undisturbed,
)
from lipprof.curvature.hessian.differences import DifferenceOperator, DifferenceStep
from lipprof.curvature.hessian.engine import Engine, HessianEngine
from lipprof.curvature.hessian.footprint import AllocationCounter
from lipprof.curvature.hessian.pyhessian_engine import pyhessian_eigenpairs, pyhessian_trace, refuse
from lipprof.curvature.hessian.retained import (
    GradientGraph,
    HessianOperator,
    gradient_graph,
    hutchinson_sample,
    retained_hessian,
)
from lipprof.curvature.kernels import (
    is_compiled,
    is_wrapped_by_compile,
    thrice_differentiable,
    twice_differentiable,
    uncompiled,
    without_compilation,
)
from lipprof.curvature.layer_check import Derivative, LayerCheck, check_layers, recorded_calls
from lipprof.curvature.loss.displacement import DisplacedLoss, displaced, move_to
from lipprof.curvature.loss.gradients import weighted_gradient
from lipprof.curvature.loss.losses import LossClosure, ProbeLoss
from lipprof.curvature.loss.replay import CapturedForward, output_edges, replayed_graph
from lipprof.curvature.loss.replicas import (
    check_replica,
    process_count,
    process_rank,
    watch_gradients,
    without_collectives,
)
from lipprof.curvature.loss.step_differences import ExpandedLoss, ExpandedStep, expanded_loss
from lipprof.curvature.operators import LossHessian, ParameterOperator
from lipprof.curvature.parameters import ParameterView, plain_model, plain_name
from lipprof.curvature.partition import Partition, Piece, Units, check_units
from lipprof.curvature.preconditioned import (
    PreconditionedOperator,
    Stability,
    read_preconditioner,
    stability,
)
from lipprof.curvature.step_rules import StepRule, register_step_rule
from lipprof.curvature.third.curvature_gradients import CurvatureGradients, ThirdDerivativeTest
from lipprof.curvature.third.products import ThirdDerivatives, third_derivatives

__all__ = [
    "check_replica",
    "process_count",
    "process_rank",
    "watch_gradients",
    "without_collectives",
    "AllocationCounter",
    "BlockSpec",
    "BlockSpectra",
    "CapturedForward",
    "Consistency",
    "CurvatureGradients",
    "Derivative",
    "DifferenceOperator",
    "DifferenceStep",
    "DisplacedLoss",
    "Engine",
    "ExpandedLoss",
    "ExpandedStep",
    "GaussNewtonOperator",
    "GradientGraph",
    "HessianEngine",
    "HessianOperator",
    "LayerCheck",
    "LossClosure",
    "LossHessian",
    "ParameterOperator",
    "ParameterView",
    "Partition",
    "Piece",
    "PreconditionedOperator",
    "ProbeLoss",
    "RandomState",
    "Stability",
    "StepRule",
    "ThirdDerivativeTest",
    "ThirdDerivatives",
    "Units",
    "block_spectra",
    "blocks_of",
    "check_layers",
    "check_units",
    "checked_operator",
    "clone_buffers",
    "diagonal_blocks",
    "displaced",
    "expanded_loss",
    "gauss_newton",
    "gradient_graph",
    "hutchinson_sample",
    "is_compiled",
    "is_probing",
    "is_wrapped_by_compile",
    "move_to",
    "output_edges",
    "plain_model",
    "plain_name",
    "probing",
    "pyhessian_eigenpairs",
    "pyhessian_trace",
    "read_preconditioner",
    "recorded_calls",
    "refuse",
    "register_step_rule",
    "replayed_graph",
    "retained_hessian",
    "stability",
    "third_derivatives",
    "thrice_differentiable",
    "twice_differentiable",
    "uncompiled",
    "undisturbed",
    "weighted_gradient",
    "without_compilation",
]
