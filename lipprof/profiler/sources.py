"""Where the measured loss comes from: a closure over a probe, or the training step itself."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lipprof.curvature import (
    CapturedForward,
    GradientGraph,
    HessianEngine,
    HessianOperator,
    LossHessian,
    ParameterView,
    ProbeLoss,
    RandomState,
    clone_buffers,
    gradient_graph,
    is_compiled,
    is_probing,
    is_wrapped_by_compile,
    output_edges,
    replayed_graph,
    thrice_differentiable,
    twice_differentiable,
)
from lipprof.errors import ReplayError
from lipprof.profiler.hooks import PrivateHook
from lipprof.profiler.interception import BackwardCall, backward_is_running, intercept_backward
from lipprof.settings import Settings

_log = logging.getLogger("lipprof")

PLANNED_MATVECS = 2000  # over a run, which a trace is amortised over: some 20 measurements


@dataclass(frozen=True, slots=True)
class Products:
    """How Hessian-vector products are computed."""

    engine: str  # "retained", "traced", "recomputed", "differences"
    relative_error: float = 0.0  # of products by differences or in half precision
    bytes: int = 0  # predicted peak, where a memory limit asked for it


class Source(Protocol):
    """Gives the Hessian of the step about to be taken."""

    name: str

    preparing_s: float  # spent on this iteration before ``operator``

    @property
    def products(self) -> Products:
        """How they are computed, as known after ``operator``."""
        ...

    def arm(self) -> None:
        """Get ready: the iteration that now begins will be measured."""
        ...

    def operator(self) -> LossHessian:
        """Return the Hessian; called just before the optimizer steps."""
        ...

    def disarm(self) -> None:
        """Let go of everything held for this iteration."""
        ...


class ClosureSource:
    """``loss(model)`` over a fixed probe: free of minibatch noise, and independent of the loop."""

    name = "closure"
    preparing_s = 0.0

    def __init__(
        self, loss: ProbeLoss, view: ParameterView, settings: Settings, limit: int | None
    ) -> None:
        self._tol = settings.tol
        self._engine = HessianEngine(
            loss,
            view,
            engine=settings.engine,
            planned=0 if settings.max_overhead else PLANNED_MATVECS,  # a trace may cost too much
            memory_limit=limit,
            check_deterministic=settings.check_deterministic,
        )

    @property
    def products(self) -> Products:
        """How they are computed."""
        engine = self._engine
        return Products(engine.name, engine.relative_error, engine.product_bytes)

    def arm(self) -> None:
        """Nothing to prepare."""

    def operator(self) -> LossHessian:
        """Evaluate the closure at the present parameters."""
        operator = self._engine.operator()
        self._engine.warn_of_precision(self._tol)
        return operator

    def disarm(self) -> None:
        """Nothing to let go of."""


class StepSource:
    """The training step's own loss: the sum of the losses that the loop differentiates.

    By replay (see ``lipprof.curvature.replay``) as long as the replayed gradient agrees with the
    loop's own.  When it does not, that measurement is recorded as failed and later ones prepare the
    live forward instead: the training step itself then runs on twice differentiable kernels at
    the measured iterations, which may change it by rounding.  This is announced once.
    """

    products = Products("retained")
    RTOL = 1e-3
    RTOL_AUTOCAST = 5e-2  # half precision: kernels differ by 1e-2

    def __init__(self, model: nn.Module, view: ParameterView, *, thrice: bool = False) -> None:
        self.model, self.view = model, view
        self._thrice = thrice  # whether third derivatives will be taken
        self.name = "replay"
        self._forwards: list[CapturedForward] = []
        self._graphs: list[GradientGraph] = []
        self._problem: Exception | None = None
        self.preparing_s = 0.0
        self._removers: list[Callable[[], None]] = []
        self._pending: list[tuple[RandomState, dict[int, Tensor], ExitStack]] = []

    def arm(self) -> None:
        """Watch the root module's forwards and the loop's backwards."""
        self.disarm()
        if is_compiled(self.model) and not is_wrapped_by_compile(self.model):
            self._problem = ReplayError(
                f"A part of {type(self.model).__name__} is compiled in place; its forwards cannot "
                "be seen. Attach to what torch.compile(model) returns, or pass loss= (a closure "
                "over a probe batch) to lipprof.attach."
            )
            return
        self._removers = [
            self.model.register_forward_pre_hook(
                PrivateHook(self.enter_forward), prepend=True
            ).remove,
            self.model.register_forward_hook(
                PrivateHook(self._after_forward), with_kwargs=True, always_call=True
            ).remove,
            intercept_backward(self._on_backward),
        ]

    def disarm(self) -> None:
        """Remove all hooks and drop the graphs."""
        for remove in self._removers:
            remove()
        self._removers, self._forwards, self._graphs = [], [], []
        self._pending, self._problem, self.preparing_s = [], None, 0.0

    def operator(self) -> HessianOperator:
        """Sum up what the loop has differentiated since its last step.

        Returns:
            The Hessian of that sum.

        Raises:
            ReplayError: there was nothing, or not all of it could be replayed.
        """
        if self._problem is not None:
            raise self._problem
        if backward_is_running():
            raise ReplayError(
                "The optimizer steps inside the backward, while later gradients are missing: there "
                "is no point at which the training step has one Hessian. Pass loss= (a closure "
                "over a probe batch) to lipprof.attach."
            )
        if not self._graphs:
            raise ReplayError(
                f"No backward of a loss of {type(self.model).__name__} was seen before the "
                "optimizer's step. Pass loss= (a closure over a probe batch) to lipprof.attach."
            )
        return HessianOperator(self.view, self._graphs)

    def enter_forward(self, model: nn.Module, _arguments: tuple[Any, ...]) -> None:
        """Remember what the forward that now begins starts from."""
        if torch.compiler.is_compiling() or is_probing():
            return
        settings = ExitStack()
        if self.name == "live":
            kernels = thrice_differentiable if self._thrice else twice_differentiable
            settings.enter_context(kernels(model))
        self._pending.append((RandomState.capture(), clone_buffers(model), settings))

    def _after_forward(
        self, _model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any
    ) -> None:
        if torch.compiler.is_compiling() or is_probing() or not self._pending:
            return
        random_state, buffers, settings = self._pending.pop()
        settings.close()
        edges = output_edges(output)
        if not edges:  # evaluation under no_grad
            return
        device = self.view.device.type
        autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        self._forwards.append(
            CapturedForward(arguments, keywords, random_state, buffers, autocast, edges)
        )

    def _on_backward(self, call: BackwardCall) -> Callable[[], None] | None:
        graph, problem, started = None, None, time.perf_counter()
        try:
            graph = self._graph_of(call)
            call.keep_graph |= graph is not None
        except Exception as error:  # noqa: BLE001 - the loop's backward must run whatever happens
            problem = error
        self.preparing_s += time.perf_counter() - started
        before = [p.grad if p.grad is None else p.grad.clone() for p in self.view.parameters]
        return lambda: self._after_backward(graph, problem, before)

    def _graph_of(self, call: BackwardCall) -> GradientGraph | None:
        loss = call.loss
        if loss is None or not loss.requires_grad:
            return None
        if self.name == "live":
            return gradient_graph(loss, self.view, weight=1 / call.loss_scale)
        return replayed_graph(
            loss,
            self._forwards,
            self.model,
            self.view,
            weight=1 / call.loss_scale,
            thrice=self._thrice,
        )

    def _after_backward(
        self, graph: GradientGraph | None, problem: Exception | None, before: list[Tensor | None]
    ) -> None:
        """Compare the gradient that the loop obtained with the graph's.

        A problem with the loss of another model, which gave no gradient here, is none.
        """
        try:
            parameters = self.view.parameters
            obtained = self.view.flatten([
                _increment(p, old) for p, old in zip(parameters, before, strict=True)
            ])
            size = torch.linalg.vector_norm(obtained)
            expected = 0.0 if graph is None else self.view.flatten(graph.gradients)
            error = float(torch.linalg.vector_norm(obtained - expected) / size) if size > 0 else 0.0
            limit = self.RTOL_AUTOCAST if self._uses_autocast() else self.RTOL
            if problem is not None and size != 0:
                self._problem = problem
            if error <= limit and graph is not None:
                self._graphs.append(graph)
            elif error > limit and self._problem is None:
                self._problem = self._disagreement(error, limit)
            if self._problem is not None:
                self._fall_back()
        except Exception as error:  # noqa: BLE001
            self._problem = error

    def _uses_autocast(self) -> bool:
        return any(forward.autocast[0] for forward in self._forwards)

    def _disagreement(self, error: float, limit: float) -> ReplayError:
        return ReplayError(
            f"The {self.name} gradient differs from the training step's by {error:.1e} "
            f"(limit {limit:.0e}): the loss has terms that do not come from one forward of "
            f"{type(self.model).__name__}, or its forward is not repeatable."
        )

    def _fall_back(self) -> None:
        if self.name == "replay" and isinstance(self._problem, ReplayError):
            self.name = "live"
            _log.warning(
                "lipprof: the training step cannot be replayed (%s) From now on the measured "
                "iterations themselves run on twice differentiable kernels, which may change "
                "them by rounding. Pass loss= to lipprof.attach to avoid this.",
                self._problem,
            )


def _increment(parameter: Tensor, before: Tensor | None) -> Tensor:
    """What a backward added to ``parameter.grad``."""
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    return parameter.grad if before is None else parameter.grad - before
