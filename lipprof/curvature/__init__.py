"""From a loss to a matrix-free Hessian; the only home of torch.autograd."""

from lipprof.curvature.closure import LossClosure, hessian_of_closure, spectrum
from lipprof.curvature.guards import RandomState, clone_buffers, is_probing, undisturbed
from lipprof.curvature.hessian import (
    GradientGraph,
    HessianOperator,
    gradient_graph,
    hutchinson_sample,
)
from lipprof.curvature.kernels import is_compiled, twice_differentiable
from lipprof.curvature.parameters import ParameterView, plain_name
from lipprof.curvature.replay import CapturedForward, output_edges, replayed_graph

__all__ = [
    "CapturedForward",
    "GradientGraph",
    "HessianOperator",
    "LossClosure",
    "ParameterView",
    "RandomState",
    "clone_buffers",
    "gradient_graph",
    "hessian_of_closure",
    "hutchinson_sample",
    "is_compiled",
    "is_probing",
    "plain_name",
    "output_edges",
    "replayed_graph",
    "spectrum",
    "twice_differentiable",
    "undisturbed",
]
