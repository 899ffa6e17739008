"""Products recorded once per θ as a CUDA graph, then replayed in one launch each.

A product of a small network is hundreds of kernels that take less time than the CPU takes to launch
them.  A traced product is fit to be recorded: a fixed list of operators on tensors of fixed shapes,
without autograd, random numbers or a look at values.  Recording costs about three products and
memory for the temporaries of one, kept as long as the operator.

Written by torch's rules for capture and tested on a CPU with a stand-in for the recorder; no GPU
has run it yet, so it is off unless asked for.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.curvature.hessian.traced import TracedHessianOperator
from lipprof.curvature.operators import LossHessian

WARM_UPS = 2  # lazy initialisation of libraries must not fall into the recording
_log = logging.getLogger("lipprof")


class Recording(NamedTuple):
    """Work that can be repeated."""

    replay: Callable[[], None]
    output: Tensor  # written anew at each replay


def record_cuda_graph(work: Callable[[], Tensor]) -> Recording:
    """Record work on the current CUDA device.

    Args:
        work: runs the same kernels on the same memory each time.

    Returns:
        What replays it.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()
    return Recording(graph.replay, output)


class ReplayedOperator:
    """The same ``LossHessian``, its products out of a recording.

    Args:
        operator: valid until the parameters change, and so is this.
        record: makes the recording.
    """

    def __init__(
        self,
        operator: LossHessian,
        record: Callable[[Callable[[], Tensor]], Recording] = record_cuda_graph,
    ) -> None:
        self._operator, self.view = operator, operator.view
        self.n, self.dtype, self.device = operator.n, operator.dtype, operator.device
        self._vector = torch.zeros(self.n, dtype=self.dtype, device=self.device)
        self._recording = record(lambda: operator.matvec(self._vector))

    @property
    def loss(self) -> float:
        """The loss."""
        return self._operator.loss

    def gradient(self) -> Float[Tensor, " n"]:
        """Its gradient."""
        return self._operator.gradient()

    def matvec(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """One Hessian-vector product: H v."""
        self._vector.copy_(vector)
        self._recording.replay()
        return self._recording.output.clone()


def replayed(operator: LossHessian) -> LossHessian:
    """Record the products of an operator where that applies, and say so where it does not.

    Args:
        operator: of any backend.

    Returns:
        A ``ReplayedOperator`` for a traced one on CUDA that can be recorded; else the operator.
    """
    if not isinstance(operator, TracedHessianOperator) or operator.device.type != "cuda":
        _log.warning(
            "lipprof: cuda_graph=True is without effect: it takes traced products on CUDA, and "
            "these are by %s on %s.",
            type(operator).__name__,
            operator.device.type,
        )
        return operator
    try:
        return ReplayedOperator(operator)
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")
        _log.warning("lipprof: the product cannot be recorded as a CUDA graph: %s", reason)
        return operator
