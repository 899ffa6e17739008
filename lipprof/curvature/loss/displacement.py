"""A model elsewhere in parameter space for a moment: θ moved, and put back bit by bit.

1. θ is put back from a copy, whatever happens; version counters do not move, so that graphs taken
   before stay usable.
2. ``torch.autocast`` keeps cast weights until its outermost region ends.  Within one region every
   evaluation would see the same stale weights; the cache is cleared whenever θ is moved.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.curvature.guards import undisturbed
from lipprof.curvature.loss.gradients import weighted_gradient
from lipprof.curvature.loss.losses import ProbeLoss
from lipprof.curvature.parameters import ParameterView


@contextmanager
def displaced(view: ParameterView, point: Float[Tensor, " n"]) -> Iterator[None]:
    """Have other parameters meanwhile.

    Args:
        view: the parameters.
        point: their values, rounded to each parameter's dtype.

    Yields:
        Once, with θ = ``point``.
    """
    before = view.snapshot()  # lossless: its dtype holds that of every parameter
    try:
        move_to(view, point)
        yield
    finally:
        move_to(view, before)


def move_to(view: ParameterView, point: Float[Tensor, " n"]) -> None:
    """Have other parameters from now on; see ``displaced``."""
    for parameter, part in zip(view.parameters, view.split(point), strict=True):
        parameter.data.copy_(part)
    torch.clear_autocast_cache()


class DisplacedLoss:
    """f(θ + s) as a function of s (n,), for the θ at the time of the call; nothing else changes.

    f(θ) is its value at s = 0.  The loss of a Hessian's gradient graph may differ from that in its
    last digits, as a graph can make a model choose other kernels; differences of the two would
    count that as descent.

    Costs one forward of the probe without a graph, and 2n numbers.
    """

    def __init__(self, loss: ProbeLoss, view: ParameterView) -> None:
        self.loss, self.view = loss, view
        self.num_evaluations = 0

    def __call__(self, displacement: Float[Tensor, " n"]) -> float:
        """Evaluate the loss elsewhere.

        Args:
            displacement: s.  Unit: param.

        Returns:
            f(θ + s), NaN and infinity included.
        """
        self.num_evaluations += 1
        point = self.view.snapshot().add_(displacement)
        with undisturbed(self.loss.model), displaced(self.view, point):
            return self.loss.value()

    def gradient(self, displacement: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Differentiate the loss elsewhere, for one forward and one backward.

        Args:
            displacement: s.  Unit: param.

        Returns:
            ∇f(θ + s).

        Raises:
            NonfiniteError: the loss or its gradient is NaN or infinite there.
        """  # noqa: DOC502 - raised by the gradient
        point = self.view.snapshot().add_(displacement)
        with undisturbed(self.loss.model), displaced(self.view, point), torch.enable_grad():
            return weighted_gradient(self.loss.terms(), self.view)[1]
