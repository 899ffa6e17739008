"""The Hessian of a closure as a traced product: what does not depend on v is computed once per θ.

One double backward is recorded, with fake tensors that cost no memory, as a graph of aten operators
from (θ, v, buffers, batch) to (loss, gradient, H v), and cut by dependence on v.  The primal part
gives loss, gradient and whatever the rest needs; a product then runs the rest alone, without
autograd.  Measured on a CPU in gradients (over a retained gradient graph): small CNN 1.1 to 1.2
(1.4 to 1.5), 4-layer GPT 2.0 to 2.1 (2.5), ResNet18 2.1 to 2.2 (2.1 to 2.2); 2 is the floor for
networks of matrix products.  Forward over reverse mode, cut and rewritten in the same way, costs
the same, takes longer to trace, lacks formulas for some operators and goes through ``no_grad``.

A trace serves later θ, buffers and batches of the same shapes.  What Python decided while it was
recorded is baked in; so at every θ the gradient is compared with one computed afresh, which costs
one gradient, and a trace that disagrees is refused.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from lipprof.curvature.hessian import fx_passes
from lipprof.curvature.loss.functional import FunctionalLoss, Microbatch
from lipprof.curvature.loss.gradients import weighted_gradient
from lipprof.curvature.parameters import ParameterView
from lipprof.errors import CurvatureError


class NotTraceableError(CurvatureError):
    """A loss whose Hessian-vector product cannot be traced, or whose trace is not faithful."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The two parts of a traced Hessian-vector product."""

    primal: fx.GraphModule  # (θ..., state..., batch...) -> ((loss, gradients...), kept)
    tangent: fx.GraphModule  # (v..., kept...) -> H v, one part per parameter; None: zero


class TracedHessianOperator:
    """H = Σ_b w_b ∇²loss_b at fixed parameters; a ``SymmetricOperator``."""

    def __init__(self, view: ParameterView) -> None:
        self.view = view
        self.n, self.dtype, self.device = view.n, view.dtype, view.device
        self._loss: list[tuple[Tensor, float]] = []
        self._gradient = torch.zeros(self.n, dtype=self.dtype, device=self.device)
        self._parts: list[tuple[fx.GraphModule, Sequence[Tensor], float]] = []

    def add(self, trace: Trace, inputs: Sequence[Tensor], weight: float) -> None:
        """Run the primal part for one microbatch.

        Args:
            trace: of a microbatch of this shape.
            inputs: θ, the state of the model, the batch.
            weight: of this microbatch in the total.
        """
        with torch.no_grad():
            (loss, *gradients), kept = trace.primal.forward(*inputs)
        self._loss.append((loss, weight))
        self._accumulate(self._gradient, gradients, weight)
        self._parts.append((trace.tangent, kept, weight))

    @property
    def loss(self) -> float:
        """Σ_b w_b loss_b."""
        return sum(weight * float(loss) for loss, weight in self._loss)

    def gradient(self) -> Float[Tensor, " n"]:
        """Σ_b w_b ∇loss_b."""
        return self._gradient.clone()

    def matvec(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """One Hessian-vector product: H v."""
        parts = self.view.split(vector.detach())
        total = torch.zeros(self.n, dtype=self.dtype, device=self.device)
        for tangent, kept, weight in self._parts:
            with torch.no_grad():
                self._accumulate(total, tangent.forward(*parts, *kept), weight)
        return total

    def _accumulate(self, total: Tensor, parts: Sequence[Tensor | None], weight: float) -> None:
        for place, part in zip(total.split(self.view.numel), parts, strict=True):
            if part is not None:
                place.add_(part.reshape(-1), alpha=weight)


class TracedHessian:
    """Traces of a closure, one per shape of microbatch and mode of the modules, kept for the run.

    To be used under ``undisturbed`` and ``twice_differentiable``.
    """

    def __init__(self, functional: FunctionalLoss, *, seed: int = 0) -> None:
        self.functional, self.view, self.seed = functional, functional.view, seed
        self.seconds = 0.0  # spent tracing so far
        self._traces: dict[Any, Trace] = {}

    def operator(self, microbatches: Sequence[Microbatch]) -> TracedHessianOperator:
        """Evaluate the closure at the present parameters, ready for products.

        The random number generators are seeded, and draw as in a plain evaluation.

        Args:
            microbatches: of the probe.

        Returns:
            The operator, valid until the parameters change.

        Raises:
            NotTraceableError: the closure cannot be traced, or its trace gives another loss or
                gradient than the closure itself.
            NonfiniteError: the loss or its gradient is NaN or infinite.
        """
        loss, gradient = weighted_gradient(self._terms(microbatches), self.view)
        traces = [self.trace(microbatch) for microbatch in microbatches]
        theta = [parameter.detach() for parameter in self.view.parameters]
        operator = TracedHessianOperator(self.view)
        torch.manual_seed(self.seed)
        for trace, microbatch in zip(traces, microbatches, strict=True):
            state = self.functional.state().values()
            operator.add(trace, [*theta, *state, *microbatch.tensors()], microbatch.weight)
        rtol = rounding(self.view)
        require_agreement(torch.tensor([operator.loss]), torch.tensor([loss]), "loss", rtol=rtol)
        require_agreement(operator.gradient(), gradient, "gradient", rtol=rtol)
        return operator

    def trace(self, microbatch: Microbatch) -> Trace:
        """Return the trace for microbatches of this shape, recorded at the first call."""
        key = (self.functional.signature(), microbatch.signature())
        if key not in self._traces:
            begin = time.perf_counter()
            self._traces[key] = record(self.functional, microbatch)
            self.seconds += time.perf_counter() - begin
        return self._traces[key]

    def _terms(self, microbatches: Sequence[Microbatch]) -> Iterator[tuple[float, Tensor]]:
        """A plain evaluation of the closure, as ``ProbeLoss.terms`` makes it."""
        torch.manual_seed(self.seed)
        for microbatch in microbatches:
            yield microbatch.weight, self.functional.plain(microbatch.arguments)


def rounding(view: ParameterView) -> float:
    """The relative difference that rounding may explain: the root of the coarsest precision."""
    return max(torch.finfo(parameter.dtype).eps for parameter in view.parameters) ** 0.5


def require_agreement(traced: Tensor, plain: Tensor, what: str, *, rtol: float) -> None:
    """Refuse a trace that does not compute what the closure computes.

    Args:
        traced: a vector out of the trace.
        plain: the same vector by another way.
        what: its name.
        rtol: tolerated ‖difference‖ over ‖plain‖.

    Raises:
        NotTraceableError: they differ.
    """
    difference, scale = float((traced - plain).norm()), float(plain.norm())
    if not difference <= rtol * scale:
        raise NotTraceableError(
            f"The trace gives another {what} than the closure itself, off by {difference:.1e} of "
            f"{scale:.1e}: the closure decides something in Python (a branch, a counter, a "
            "replaced tensor) that the trace has baked in."
        )


def record(functional: FunctionalLoss, microbatch: Microbatch) -> Trace:
    """Trace the loss, its gradient and H v, and cut the trace by dependence on v.

    Args:
        functional: the loss.
        microbatch: gives the shapes.

    Returns:
        The two parts.

    Raises:
        NotTraceableError: Python reads values of tensors, an operator has no second derivative or
            no fake kernel.
    """
    count, state = len(functional.view.parameters), functional.state()

    def product(*flat: Tensor) -> list[Tensor | None]:
        theta = [tensor.detach().requires_grad_() for tensor in flat[:count]]
        v, rest = flat[count : 2 * count], flat[2 * count :]
        present = dict(zip(state, rest, strict=False))
        with torch.enable_grad():
            loss = functional(theta, present, microbatch.refilled(rest[len(state) :]))
            gradients = torch.autograd.grad(
                loss.reshape(()), theta, create_graph=True, allow_unused=True
            )
        curved = [(g, u) for g, u in zip(gradients, v, strict=True) if g is not None]
        curved = [(gradient, u) for gradient, u in curved if gradient.requires_grad]
        products: Sequence[Tensor | None] = [None] * count
        if curved:
            outputs, vectors = zip(*curved, strict=True)
            products = torch.autograd.grad(outputs, theta, vectors, allow_unused=True)
        return [loss.detach(), *(g if g is None else g.detach() for g in gradients), *products]

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    theta = [fake.from_tensor(parameter.detach()) for parameter in functional.view.parameters]
    with fake:
        v = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in theta]
    others = [fake.from_tensor(t) for t in (*state.values(), *microbatch.tensors())]
    try:
        trace = make_fx(product, tracing_mode="fake", _allow_non_fake_inputs=True)
        return _cut(trace(*theta, *v, *others), count)
    except Exception as error:  # of many kinds; the closure is then left to other backends
        reason = next(iter(str(error).splitlines()), "")
        raise NotTraceableError(
            f"The loss cannot be traced: {type(error).__name__}: {reason}"
        ) from error


def _cut(module: fx.GraphModule, count: int) -> Trace:
    graph = module.graph
    fx_passes.prune(graph)
    tangents = [node for node in graph.nodes if node.op == "placeholder"][count : 2 * count]
    fx_passes.simplify(graph, tangents)
    outputs: Any = graph.output_node().args[0]
    primal, tangent = fx_passes.split(
        graph,
        fx_passes.dependents(graph, tangents),
        primal=outputs[: count + 1],
        tangent=outputs[count + 1 :],
    )
    fx_passes.reuse_storages(tangent)
    return Trace(fx.GraphModule(module, primal), fx.GraphModule(module, tangent))
