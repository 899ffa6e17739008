"""A training step's loss elsewhere in parameter space, for central differences of its gradient.

Where an operator of the model has no second derivative, its forward can still be replayed at other
parameters; the loss head, which is the user's own code, cannot.  So the head is expanded about the
outputs z of the step (``replay`` says what z, the head and g_z are):

    loss(θ') ≈ loss + g_zᵀ d + ½ dᵀ H_head d,    d = z(θ') − z

Its gradient is (∂z'/∂θ)ᵀ (g_z + H_head d), whose derivative at θ is the Hessian of the step without
an approximation: what the expansion leaves out is of second order in θ' − θ, and central
differences cancel that.  Costs a forward, a product with the head and a backward a gradient.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipprof.curvature.guards import undisturbed
from lipprof.curvature.loss.gradients import differentiate
from lipprof.curvature.loss.replay import CapturedForward, LiveHead, checked_head, replayed_outputs
from lipprof.curvature.parameters import ParameterView


@dataclass(frozen=True, slots=True)
class ExpandedLoss:
    """One loss of the step, by the outputs that it depends on."""

    loss: float
    gradients: Sequence[Tensor]  # one per parameter, at the step's own parameters
    weight: float
    forwards: Sequence[CapturedForward]
    frontier: Sequence[tuple[int, int]]  # forward, position among its outputs
    head: LiveHead
    outputs: Sequence[Tensor]  # z, detached

    def at_present(self, model: nn.Module, device: str) -> Tensor:
        """Evaluate at the model's present parameters; a scalar with its graph."""
        replayed = replayed_outputs(self.forwards, self.frontier, model, device)
        return _expansion(self.loss, self.head, self.outputs, replayed)


def expanded_loss(
    loss: Tensor,
    forwards: Sequence[CapturedForward],
    model: nn.Module,
    view: ParameterView,
    *,
    weight: float = 1.0,
) -> ExpandedLoss:
    """Expand a live loss in the outputs of the forwards that led to it.

    Args:
        loss: a scalar about to be differentiated by the training loop; its graph must be kept
            (``retain_graph``) as long as the result is used.
        forwards: the root module's forwards since the last backward.
        model: the root module.
        view: the parameters.
        weight: of this loss in the total.

    Returns:
        The expansion, with its gradient at the present parameters.

    Raises:
        ReplayError: see ``replayed_graph``.
        NonfiniteError: the loss is NaN or infinite.
    """  # noqa: DOC502 - raised by what it calls
    value, frontier, head = checked_head(loss, forwards, model)
    replayed = replayed_outputs(forwards, frontier, model, view.device.type)
    outputs = [z.detach() for z in replayed]
    with torch.enable_grad():
        _, gradients = differentiate(_expansion(value, head, outputs, replayed), view)
    return ExpandedLoss(value, gradients, weight, tuple(forwards), frontier, head, outputs)


@dataclass(frozen=True, slots=True)
class ExpandedStep:
    """All losses of a step; evaluated as a closure is."""

    model: nn.Module
    device: str
    parts: Sequence[ExpandedLoss]

    def terms(self) -> Iterator[tuple[float, Tensor]]:
        """Weight and loss, with its graph, one after the other; to be called under ``undisturbed``.

        Yields:
            Both.
        """
        for part in self.parts:
            with undisturbed(self.model), torch.enable_grad():
                loss = part.at_present(self.model, self.device)
            yield part.weight, loss
            del loss


def _expansion(
    value: float, head: LiveHead, outputs: Sequence[Tensor], replayed: Sequence[Tensor]
) -> Tensor:
    """A scalar of this value, with the gradient g_z + H_head (z' − z) by the replayed outputs."""
    shifts = [(after - before).detach() for after, before in zip(replayed, outputs, strict=True)]
    total = replayed[0].new_zeros((), dtype=_wide(replayed[0]))
    for z, slope, bend in zip(replayed, head.values, head.vector_product(shifts), strict=True):
        gradient = slope.detach() if bend is None else slope.detach() + bend
        total = total + (z.to(_wide(z)) * gradient.to(_wide(z))).sum()
    return total - total.detach() + value


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
