"""From a loss to a matrix-free operator of second derivatives; the only home of torch.autograd."""

from lipprof.curvature.blocks import (
    BlockSpec,
    BlockSpectra,
    block_spectra,
    diagonal_blocks,
)
from lipprof.curvature.consistency import Consistency, checked_operator
from lipprof.curvature.differences import DifferenceOperator
from lipprof.curvature.engine import Engine, HessianEngine
from lipprof.curvature.ggn import GaussNewtonOperator, gauss_newton
from lipprof.curvature.guards import RandomState, clone_buffers, is_probing, undisturbed
from lipprof.curvature.hessian import (
    GradientGraph,
    HessianOperator,
    gradient_graph,
    hutchinson_sample,
    retained_hessian,
)
from lipprof.curvature.kernels import is_compiled, is_wrapped_by_compile, twice_differentiable
from lipprof.curvature.losses import LossClosure, ProbeLoss
from lipprof.curvature.operators import LossHessian, ParameterOperator
from lipprof.curvature.parameters import ParameterView, plain_name
from lipprof.curvature.preconditioned import (
    PreconditionedOperator,
    Stability,
    read_preconditioner,
    stability,
)
from lipprof.curvature.pyhessian_engine import pyhessian_eigenpairs, pyhessian_trace, refuse
from lipprof.curvature.replay import CapturedForward, output_edges, replayed_graph
from lipprof.curvature.step_rules import StepRule, register_step_rule

__all__ = [
    "BlockSpec",
    "BlockSpectra",
    "CapturedForward",
    "Consistency",
    "DifferenceOperator",
    "Engine",
    "GaussNewtonOperator",
    "GradientGraph",
    "HessianEngine",
    "HessianOperator",
    "LossClosure",
    "LossHessian",
    "ParameterOperator",
    "ParameterView",
    "PreconditionedOperator",
    "ProbeLoss",
    "RandomState",
    "Stability",
    "StepRule",
    "block_spectra",
    "checked_operator",
    "clone_buffers",
    "diagonal_blocks",
    "gauss_newton",
    "gradient_graph",
    "hutchinson_sample",
    "is_compiled",
    "is_probing",
    "output_edges",
    "plain_name",
    "pyhessian_eigenpairs",
    "pyhessian_trace",
    "read_preconditioner",
    "refuse",
    "register_step_rule",
    "replayed_graph",
    "retained_hessian",
    "stability",
    "twice_differentiable",
    "undisturbed",
]
