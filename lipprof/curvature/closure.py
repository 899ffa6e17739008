"""The Hessian of a ``loss=`` closure over a fixed probe, and the one-shot ``spectrum``."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lipprof.curvature.guards import undisturbed
from lipprof.curvature.hessian import HessianOperator, gradient_graph
from lipprof.curvature.kernels import twice_differentiable
from lipprof.curvature.parameters import ParameterView
from lipprof.errors import ConfigError
from lipprof.linalg import RitzPairs, eigenpairs

LossClosure = Callable[..., Tensor]


def hessian_of_closure(
    model: nn.Module,
    loss: LossClosure,
    view: ParameterView,
    *,
    probe: Sequence[Any] | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    seed: int = 0,
) -> HessianOperator:
    """Evaluate the closure and keep its gradient graph.

    To be called under ``undisturbed`` and ``twice_differentiable``.

    The random number generator is seeded first, so that dropout in train mode draws the same masks
    at every measurement.

    Args:
        model: handed to the closure.
        loss: ``loss(model)``, or ``loss(model, batch)`` where a probe is given.
        view: the parameters.
        probe: microbatches; the losses of mean-reducing closures are weighted by their sizes.
        reduction: of the closure over a microbatch.
        seed: of the global generators meanwhile.

    Returns:
        The operator.
    """
    torch.manual_seed(seed)
    with torch.enable_grad():
        if probe is None:
            return HessianOperator(view, [gradient_graph(loss(model), view)])
        weights = [1.0] * len(probe) if reduction == "sum" else _shares(probe)
        return HessianOperator(
            view,
            [
                gradient_graph(loss(model, batch), view, weight=weight)
                for batch, weight in zip(probe, weights, strict=True)
            ],
        )


def _shares(probe: Sequence[Any]) -> list[float]:
    sizes = [_batch_size(batch) for batch in probe]
    return [size / sum(sizes) for size in sizes]


def _batch_size(batch: Any) -> int:
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim > 0:
            return leaf.shape[0]
    raise ConfigError(
        "A probe microbatch holds no tensor with a batch dimension, so its weight is unknown. "
        "Give tensors, or a closure with reduction='sum'."
    )


def spectrum(
    model: nn.Module,
    loss: LossClosure,
    *,
    top: int = 10,
    bottom: int = 10,
    tol: float = 1e-3,
    probe: Sequence[Any] | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    mode: Literal["eval", "train"] = "eval",
    max_matvecs: int = 1000,
    basis_size: int | None = None,
    seed: int = 0,
) -> RitzPairs:
    """Compute the top and bottom Hessian eigenpairs of a model's loss, once.

    Nothing changes: parameters, gradients, buffers, random states and modes are as before.

    Args:
        model: its parameters with ``requires_grad`` make up θ (n,), in ``named_parameters`` order.
        loss: ``loss(model)``, or ``loss(model, batch)`` where a probe is given; returns a scalar.
        top: number of largest eigenvalues.
        bottom: number of smallest eigenvalues.
        tol: residual over the extreme eigenvalue of the same end.
        probe: microbatches, weighted by size.
        reduction: of the closure over a microbatch.
        mode: of the modules meanwhile; in eval mode there is no dropout noise.
        max_matvecs: limit of Hessian-vector products, residual checks not counted.
        basis_size: Lanczos vectors kept, each of n entries.
        seed: of the start vector.

    Returns:
        ``values`` (k,) in falling order, ``vectors`` (k, n), ``residuals`` (k,), ``converged``
        (k,), ``num_matvecs`` and ``status``.

    Raises:
        ConfigError: no parameter, more pairs than parameters.
        NotDifferentiableError: the loss does not reach a parameter, or has no second derivative.
        NonfiniteError: the loss or a product is NaN or infinite.
    """
    view = ParameterView.of(model)
    with undisturbed(model, training=mode == "train"), twice_differentiable(model):
        operator = hessian_of_closure(
            model, loss, view, probe=probe, reduction=reduction, seed=seed
        )
        return eigenpairs(
            operator,
            top=top,
            bottom=bottom,
            tol=tol,
            max_matvecs=max_matvecs,
            basis_size=basis_size,
            seed=seed,
        )
