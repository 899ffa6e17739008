"""First derivatives of a loss, after checks that there is something to differentiate."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import Node

from lipprof.curvature.loss.graph_walk import graph_nodes
from lipprof.curvature.parameters import ParameterView
from lipprof.errors import NonfiniteError, NotDifferentiableError


def differentiate(
    loss: Any, view: ParameterView, *, create_graph: bool = False
) -> tuple[float, tuple[Tensor, ...]]:
    """Differentiate a loss once; ``.grad`` fields stay as they are.

    Args:
        loss: a scalar with its graph.
        view: the parameters.
        create_graph: whether the gradients keep their graph.

    Returns:
        The loss and one dense gradient per parameter: zeros where the loss does not use it.

    Raises:
        NotDifferentiableError: the loss is no real scalar, does not depend on any parameter, or
            passes a reentrant checkpoint.
        NonfiniteError: the loss or its gradient is NaN or infinite.
    """
    value = checked_value(loss)
    gradients = _gradients(loss, view, create_graph=create_graph)
    unused = any(gradient is None for gradient in gradients)
    if unused and any(_is_reentrant_checkpoint(node) for node in graph_nodes([loss])):
        raise NotDifferentiableError(_REENTRANT)
    complete = tuple(gradient.to_dense() for gradient in materialised(gradients, view))
    _check_finite(complete, view)
    return value, complete


def weighted_gradient(
    terms: Iterable[tuple[float, Any]], view: ParameterView
) -> tuple[float, Float[Tensor, " n"]]:
    """Differentiate a sum of losses, one graph at a time.

    Args:
        terms: weight and loss of each, evaluated lazily, as ``ProbeLoss.terms()``.
        view: the parameters.

    Returns:
        Σ_b w_b loss_b and its gradient.
    """
    total, gradient = 0.0, torch.zeros(view.n, dtype=view.dtype, device=view.device)
    for weight, loss in terms:
        value, gradients = differentiate(loss, view)
        total += weight * value
        gradient.add_(view.flatten(gradients), alpha=weight)
        del loss  # its graph, before the next one is built
    return total, gradient


def materialised(gradients: Sequence[Tensor | None], view: ParameterView) -> list[Tensor]:
    """Fill in zeros for parameters that a loss does not use.

    Args:
        gradients: one per parameter.
        view: the parameters.

    Returns:
        The gradients.

    Raises:
        NotDifferentiableError: it uses none.
    """
    if all(gradient is None for gradient in gradients):
        raise NotDifferentiableError(
            "The loss depends on none of the profiled parameters: it was computed by another model "
            "or copy, or from frozen or detached parameters only."
        )
    return [
        torch.zeros_like(parameter) if gradient is None else gradient
        for gradient, parameter in zip(gradients, view.parameters, strict=True)
    ]


def _gradients(
    loss: Tensor, view: ParameterView, *, create_graph: bool
) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(
            loss.reshape(()), view.parameters, create_graph=create_graph, allow_unused=True
        )
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise NotDifferentiableError(_REENTRANT) from error


_REENTRANT = (
    "The model uses torch.utils.checkpoint with use_reentrant=True, which hides the parameters "
    "inside from torch.autograd.grad. Call it with use_reentrant=False."
)


def _is_reentrant_checkpoint(node: Node) -> bool:
    return node.name() == "CheckpointFunctionBackward"


def checked_value(loss: Any) -> float:
    """Read the value of a loss.

    Args:
        loss: what a closure returned.

    Returns:
        Its value.

    Raises:
        NotDifferentiableError: it is no real scalar or has no graph.
        NonfiniteError: it is NaN or infinite.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        seen = type(loss).__name__
        if isinstance(loss, Tensor):
            seen = f"{loss.dtype} of shape {tuple(loss.shape)}"
        raise NotDifferentiableError(
            f"The loss must be a real tensor with one element, got {seen}. Reduce it with .mean()."
        )
    if not loss.requires_grad:
        raise NotDifferentiableError(
            "The loss does not depend on any parameter: it was computed under torch.no_grad(), "
            "detached, or by another model."
        )
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NonfiniteError(
            f"The loss is {value}: its curvature is not defined. Check this batch for overflow, "
            "log(0) or 0/0, and the parameters for a diverged run."
        )
    return value


def _check_finite(gradients: Sequence[Tensor], view: ParameterView) -> None:
    finite = torch.stack([gradient.detach().isfinite().all() for gradient in gradients]).cpu()
    if not finite.all():
        names = [name for name, good in zip(view.names, finite.tolist(), strict=True) if not good]
        raise NonfiniteError(
            f"The loss is finite but its gradient is NaN or infinite in {', '.join(names[:3])}"
            f"{f' and {len(names) - 3} more tensors' if len(names) > 3 else ''}. Usual causes: "
            "sqrt(0), norm of a zero vector, log or division by a value that underflows."
        )
