"""The training step's own loss: the sum of the losses that the loop differentiates.

Four ways, each where the one before cannot serve, for good and announced once:

1. ``replay``: the forward is replayed, the head is live (``curvature.loss.replay``); the step
   itself stays untouched.  The replayed gradient must agree with the loop's own.
2. ``live``, where it does not, or where forwards are hidden in compiled code: the measured
   iterations themselves run eagerly, on twice differentiable kernels, which may change them by
   rounding.
3. ``replay`` by central differences (``curvature.loss.step_differences``), where an operator of
   the model has no second derivative.
4. ``hooks``: there is no Hessian to be had, and only what the optimizer's hooks see is recorded.

The measurement that finds a way closed is recorded as failed, with the reason.
"""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lipprof import errors
from lipprof.curvature import (
    CapturedForward,
    DifferenceOperator,
    DifferenceStep,
    ExpandedLoss,
    ExpandedStep,
    GradientGraph,
    HessianOperator,
    LossHessian,
    ParameterView,
    RandomState,
    clone_buffers,
    expanded_loss,
    gradient_graph,
    is_compiled,
    is_probing,
    is_wrapped_by_compile,
    output_edges,
    probing,
    process_count,
    replayed_graph,
    thrice_differentiable,
    twice_differentiable,
    watch_gradients,
    without_collectives,
    without_compilation,
)
from lipprof.errors import (
    CurvatureError,
    NondeterministicCurvatureError,
    NoSecondDerivativeError,
    NotDifferentiableError,
    ReplayError,
)
from lipprof.profiler.sources.hooks import PrivateHook
from lipprof.profiler.sources.interception import (
    BackwardCall,
    backward_is_running,
    intercept_backward,
)
from lipprof.profiler.sources.source import Products

_log = logging.getLogger("lipprof")

Way = Literal["replay", "live", "differences", "hooks"]

RTOL = 1e-3
"""Of the replayed gradient against the loop's own."""
RTOL_AUTOCAST = 5e-2  # half precision: kernels differ by 1e-2

_TURNS: dict[tuple[Way, type[Exception]], Way] = {
    ("replay", NoSecondDerivativeError): "differences",
    ("replay", ReplayError): "live",
    ("live", NotDifferentiableError): "hooks",
    ("live", ReplayError): "hooks",
    ("differences", NotDifferentiableError): "hooks",
    ("differences", NondeterministicCurvatureError): "hooks",
    ("differences", ReplayError): "hooks",
}
"""Where to go from a way that an error closes; other errors may pass."""

_ANNOUNCED: dict[Way, str] = {
    "live": "lipprof: the training step cannot be replayed (%s) From now on the measured "
    "iterations themselves run on twice differentiable kernels, which may change them by rounding. "
    "Pass loss= to lipprof.attach to avoid this.",
    "differences": "lipprof: the training step cannot be differentiated twice (%s) From now on "
    "central differences of its replayed gradient serve.",
    "hooks": "lipprof: there is no Hessian of the training step to be had (%s) From now on only "
    "gradient norms and distances are recorded. Pass loss= (a closure over a probe batch) to "
    "lipprof.attach for more.",
}


class StepSource:
    """Gives the Hessian of the step about to be taken, from what the loop does.

    Args:
        model: the root module.
        view: the parameters.
        thrice: whether third derivatives will be taken.
    """

    def __init__(self, model: nn.Module, view: ParameterView, *, thrice: bool = False) -> None:
        self.model, self.view = model, view
        self.way: Way = "replay"
        self.preparing_s = 0.0
        self._thrice = thrice
        self._forwards: list[CapturedForward] = []
        self._losses: list[GradientGraph | ExpandedLoss] = []
        self._problem: Exception | None = None
        self._closed: Exception | None = None  # what left only the hooks
        self._step: DifferenceStep | None = None
        self._armed = ExitStack()
        self._pending: list[tuple[RandomState, dict[int, Tensor], ExitStack]] = []

    @property
    def name(self) -> str:
        """Where the loss comes from: ``replay``, ``live``, ``hooks``."""
        return "replay" if self.way == "differences" else self.way

    @property
    def products(self) -> Products:
        """How they are computed, as known after ``operator``."""
        if self.way == "differences" and self._step is not None:
            return Products("differences", self._step.relative_error)
        return Products("retained")

    def arm(self) -> None:
        """Watch the root module's forwards and the loop's backwards."""
        self.disarm()
        if (
            self.way == "replay"
            and is_compiled(self.model)
            and not is_wrapped_by_compile(self.model)
        ):
            name = type(self.model).__name__
            self._leave(ReplayError(f"{name}, or a part of it, is compiled in place."))
        if self.way == "hooks":
            return
        if self.way == "live":
            self._armed.enter_context(without_compilation())
        for remove in (
            self.model.register_forward_pre_hook(
                PrivateHook(self.enter_forward), prepend=True
            ).remove,
            self.model.register_forward_hook(
                PrivateHook(self._after_forward), with_kwargs=True, always_call=True
            ).remove,
            intercept_backward(self._on_backward),
        ):
            self._armed.callback(remove)

    def disarm(self) -> None:
        """Remove all hooks and drop the graphs."""
        self._armed.close()
        self._forwards, self._losses, self._pending = [], [], []
        self._problem, self.preparing_s = None, 0.0

    def failed(self, error: Exception) -> None:
        """Go another way from now on, where the error closes this one."""
        if error not in (self._problem, self._closed):  # of those the source knows
            self._leave(error)

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on the same way: plain types."""
        closed, step = self._closed, self._step
        return {
            "way": self.way,
            "closed": closed and (type(closed).__name__, str(closed)),
            "step": step and asdict(step),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, disarmed; that of a closure is ignored."""
        self.disarm()
        if "way" not in state:
            return
        self.way, step, closed = state["way"], state["step"], state["closed"]
        self._step = step and DifferenceStep(**step)
        self._closed = closed and getattr(errors, closed[0], CurvatureError)(closed[1])

    def operator(self) -> LossHessian:
        """Sum up what the loop has differentiated since its last step.

        Returns:
            The Hessian of that sum.

        Raises:
            ReplayError: there was nothing, or not all of it could be replayed.
        """  # noqa: DOC501 - the problem is whatever came up
        if self._closed is not None:
            raise self._closed
        if self._problem is not None:
            raise self._problem
        if backward_is_running():
            inside = ReplayError(
                "The optimizer steps inside the backward, while later gradients are missing: there "
                "is no point at which the training step has one Hessian."
            )
            self._go("hooks", inside)
            raise inside
        if not self._losses:
            raise ReplayError(
                f"No backward of a loss of {type(self.model).__name__} was seen before the "
                "optimizer's step. Pass loss= (a closure over a probe batch) to lipprof.attach."
            )
        graphs = [loss for loss in self._losses if isinstance(loss, GradientGraph)]
        if len(graphs) == len(self._losses):
            return HessianOperator(self.view, graphs)
        return self._differences([x for x in self._losses if isinstance(x, ExpandedLoss)])

    def _differences(self, losses: list[ExpandedLoss]) -> DifferenceOperator:
        step = ExpandedStep(self.model, self.view.device.type, losses)
        operator = DifferenceOperator(self.view, step, step=self._step)
        self._step = operator.step
        expected = torch.zeros_like(operator.gradient())
        for loss in losses:
            expected.add_(self.view.flatten(loss.gradients), alpha=loss.weight)
        deviation = _deviation(expected, operator.gradient())
        if deviation > self._limit:  # the batch was overwritten since
            problem = self._disagreement(deviation)
            self._go("hooks", problem)
            raise problem
        return operator

    # ------------------------------------------------------------------ what the loop does

    def enter_forward(self, model: nn.Module, _arguments: tuple[Any, ...]) -> None:
        """Remember what the forward that now begins starts from."""
        if torch.compiler.is_compiling() or is_probing():
            return
        settings = ExitStack()
        if self.way == "live":
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
        found, problem, started = None, None, time.perf_counter()
        before = [p.grad if p.grad is None else p.grad.clone() for p in self.view.parameters]
        if not any(gradient is not None and gradient.any() for gradient in before):
            self._losses = []  # what was differentiated before has been discarded
        try:
            with probing(), without_collectives():
                found = self._differentiated(call)
            call.keep_graph |= found is not None
        except Exception as error:  # noqa: BLE001 - the loop's backward must run whatever happens
            problem = error
        self.preparing_s += time.perf_counter() - started
        if process_count() > 1:  # what arrives in .grad is an average over replicas
            own = watch_gradients(self.view)
            return lambda: self._after_backward(found, problem, own())

        def increments() -> list[Tensor | None]:
            pairs = zip(self.view.parameters, before, strict=True)
            return [_increment(parameter, old) for parameter, old in pairs]

        return lambda: self._after_backward(found, problem, increments())

    def _differentiated(self, call: BackwardCall) -> GradientGraph | ExpandedLoss | None:
        loss, weight = call.loss, 1 / call.loss_scale
        if loss is None or not loss.requires_grad:
            return None
        if self.way == "live":
            return gradient_graph(loss, self.view, weight=weight)
        if self.way == "differences":
            return expanded_loss(loss, self._forwards, self.model, self.view, weight=weight)
        return replayed_graph(
            loss, self._forwards, self.model, self.view, weight=weight, thrice=self._thrice
        )

    def _after_backward(
        self,
        found: GradientGraph | ExpandedLoss | None,
        problem: Exception | None,
        increments: list[Tensor | None],
    ) -> None:
        """Compare the gradient that the loop obtained with the one found.

        A problem with the loss of another model, which gave no gradient here, is none.
        """
        try:
            obtained = self.view.flatten([
                torch.zeros_like(parameter) if increment is None else increment
                for parameter, increment in zip(self.view.parameters, increments, strict=True)
            ])
            if problem is not None and obtained.any():
                self._problem = problem
            expected = torch.zeros_like(obtained)
            if found is not None:
                expected = self.view.flatten(found.gradients)
            deviation = _deviation(obtained, expected)
            if deviation <= self._limit and found is not None:
                self._losses.append(found)
            elif deviation > self._limit and self._problem is None:
                self._problem = self._disagreement(deviation)
            if self._problem is not None:
                self._leave(self._problem)
        except Exception as error:  # noqa: BLE001
            self._problem = error

    @property
    def _limit(self) -> float:
        autocast = any(forward.autocast[0] for forward in self._forwards)
        return RTOL_AUTOCAST if autocast else RTOL

    def _disagreement(self, deviation: float) -> ReplayError:
        return ReplayError(
            f"The {self.way} gradient differs from the training step's by {deviation:.1e} "
            f"(limit {self._limit:.0e}): the loss has terms that do not come from one forward of "
            f"{type(self.model).__name__}, or its forward is not repeatable."
        )

    # ------------------------------------------------------------------ which way to go

    def _leave(self, error: Exception) -> None:
        for (way, kind), following in _TURNS.items():
            if way == self.way and isinstance(error, kind):
                self._go(following, error)
                return

    def _go(self, way: Way, error: Exception) -> None:
        _log.warning(_ANNOUNCED[way], error)
        self.way = way
        if way == "hooks":
            self._closed = error


def _deviation(obtained: Tensor, expected: Tensor) -> float:
    """‖obtained − expected‖ / ‖obtained‖; 0 where nothing was obtained."""
    size = torch.linalg.vector_norm(obtained)
    return float(torch.linalg.vector_norm(obtained - expected) / size) if size > 0 else 0.0


def _increment(parameter: Tensor, before: Tensor | None) -> Tensor | None:
    """What a backward added to ``parameter.grad``; None: nothing."""
    if parameter.grad is None or before is None:
        return parameter.grad
    return parameter.grad - before
