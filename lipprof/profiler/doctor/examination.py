"""What measuring a training loop would take: found out in its first steps, then the program ends.

At the first optimizer step the Hessian of that step is built and applied, as a measurement would,
and timed; where that fails the next way is tried at the next step (``step_source``).  One more step
counts the memory, two more are timed as they are.  Nothing is written.
"""

import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from lipprof.curvature import (
    AllocationCounter,
    Derivative,
    ExpandedLoss,
    GradientGraph,
    LayerCheck,
    ParameterView,
    check_layers,
    plain_model,
    recorded_calls,
    twice_differentiable,
    undisturbed,
)
from lipprof.errors import LipprofError
from lipprof.profiler.budget import Budget
from lipprof.profiler.doctor.checks import Check, State
from lipprof.profiler.estimates.blocks import block_names
from lipprof.profiler.launching.finder import LoopFinder
from lipprof.profiler.memory import foreseen_vectors
from lipprof.profiler.sources.hooks import after_closure
from lipprof.profiler.sources.interception import BackwardCall
from lipprof.profiler.sources.source import Products
from lipprof.profiler.sources.step_source import StepSource
from lipprof.settings import Settings

OVERHEAD = 0.1  # share of wall time that the suggestion aims at
PLAIN_STEPS = 2
PRODUCTS = 5  # that are timed
ATTEMPTS = 3


class Examined(SystemExit):
    """Ends a program that was examined, with exit code 0; ``except Exception`` lets it pass."""

    def __init__(self) -> None:
        super().__init__(0)


class _CountedSource(StepSource):
    """Counts what building the Hessian allocates, where that is wanted."""

    counter: AllocationCounter | None = None

    def _differentiated(self, call: BackwardCall) -> GradientGraph | ExpandedLoss | None:
        with self.counter or nullcontext():
            return super()._differentiated(call)


class Examination:
    """Takes part in a loop as a profiler does.

    Args:
        model: the model.
        optimizer: its optimizer.
        settings: of the measurement to be foreseen.

    Raises:
        ConfigError: there is no parameter to profile.
    """  # noqa: DOC502 - raised by the view

    def __init__(self, model: nn.Module, optimizer: Optimizer, settings: Settings) -> None:
        self.model, self.optimizer, self.settings = model, optimizer, settings
        self.view = ParameterView.of(model, optimizer)
        self.source = _CountedSource(model, self.view)
        self.layers: list[LayerCheck] = []
        self.problems: list[str] = []  # of the ways that do not serve
        self.products: Products | None = None  # None: no way has served yet
        self.loss = math.nan
        self.build_s = self.matvec_s = self.step_s = math.nan
        self.product_bytes = 0
        self._ends: list[float] = []  # of plain steps
        self._waiting = True  # for something to look at, in this step
        self._recording = ExitStack()
        self._calls = self._recording.enter_context(recorded_calls(plain_model(model)))
        self.source.arm()
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def enter_forward(self, arguments: tuple[Any, ...]) -> None:
        """Take in that a forward of the model, just begun, precedes this."""
        self.source.enter_forward(self.model, arguments)

    def measure_if_due(self) -> None:
        """Look at the Hessian of the step about to be taken."""
        if not self._waiting:
            return
        self._waiting = False
        try:
            self._look()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            self.problems.append(f"{type(error).__name__}: {error}")
            self.source.failed(error)
        self.source.disarm()

    def _before_step(self, _: Optimizer, arguments: Any, keywords: Any) -> Any:
        changed = after_closure(arguments, keywords, self.measure_if_due)
        if changed is None:
            self.measure_if_due()
        return changed

    def _after_step(self, *_: Any) -> None:
        another = self.products is None and self.source.way != "hooks"
        if another and len(self.problems) < ATTEMPTS:
            self._look_again()
        elif self.products is not None and self.source.counter is None:
            self.source.counter = AllocationCounter()
            self._look_again()
        else:
            self._ends.append(_now(self.view.device))
            if len(self._ends) > PLAIN_STEPS:
                self.step_s = (self._ends[-1] - self._ends[0]) / PLAIN_STEPS
                self.close()
                raise Examined

    def _look_again(self) -> None:
        self._waiting = True
        self.source.arm()

    def close(self) -> None:
        """Let go of the loop, and try its layers."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._recording.close()
        self.source.disarm()
        if self._calls and not self.layers:
            with undisturbed(self.model):
                self.layers = check_layers(plain_model(self.model), self._calls)

    def _look(self) -> None:
        device, preparing_s = self.view.device, self.source.preparing_s
        counter = self.source.counter
        with undisturbed(self.model), twice_differentiable(self.model), counter or nullcontext():
            begin = _now(device)
            operator = self.source.operator()
            built = _now(device)
            vector = operator.gradient()
            operator.matvec(vector)  # the first one may be slower
            times = [_now(device)]
            for _ in range(PRODUCTS if counter is None else 0):
                operator.matvec(vector)
                times.append(_now(device))
        if counter is not None:
            self.product_bytes = counter.peak
            return
        self.build_s = preparing_s + built - begin
        self.matvec_s = statistics.median(b - a for a, b in itertools.pairwise(times))
        self.products, self.loss = self.source.products, operator.loss

    # ------------------------------------------------------------------ what came of it

    def findings(self) -> Iterator[Check]:
        """Say what was found.

        Yields:
            One line after the other.
        """
        view, optimizer = self.view, type(self.optimizer).__name__
        dtypes = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in view.parameters}))
        yield Check(
            "model",
            State.OK,
            f"{type(plain_model(self.model)).__name__}, {view.n:,} parameters in "
            f"{len(view.names)} tensors, {dtypes} on {view.device}, under {optimizer}.",
        )
        yield from self._source_found()
        yield from _layers_found(self.layers)
        if self.products is not None:
            yield from self._cost_found()

    def _source_found(self) -> Iterator[Check]:
        for problem in self.problems:
            yield Check("attempt", State.NOTE, problem)
        if self.products is None:
            yield Check(
                "source",
                State.NOTE,
                "gradient norms and distances alone; for a spectrum call lipprof.attach with loss= "
                "(a closure over a probe batch).",
            )
            return
        state = State.OK if self.source.way == "replay" else State.NOTE
        told = {
            "replay": "the training step is replayed and stays untouched",
            "live": "measured iterations run eagerly on twice differentiable kernels, which may "
            "change them by rounding",
            "differences": "central differences of the replayed step's gradient, to "
            f"{self.products.relative_error:.0e}",
        }[self.source.way]
        text = f"{self.source.name}, {self.products.engine} products: {told}."
        yield Check("source", state, text)

    def _cost_found(self) -> Iterator[Check]:
        blocks = block_names(self.view, self.settings)
        count = Budget(self.settings, len(blocks)).full.expected_matvecs
        seconds = self.build_s + count * self.matvec_s
        text = (
            f"about {seconds:.2g} s a measurement: {count} products of {self.matvec_s:.2g} s, "
            f"{self.build_s:.2g} s to begin with"
        )
        steps = seconds / self.step_s
        if math.isfinite(steps):
            text += f"; {steps:.0f} training steps of {self.step_s:.2g} s"
        yield Check("cost", State.OK, f"{text}.")
        vectors = foreseen_vectors(self.settings, self.view.n, self.view.dtype)
        total = self.product_bytes + vectors.working + vectors.kept
        yield Check(
            "memory",
            State.OK,
            f"about {_mib(total)} beside training: {_mib(self.product_bytes)} for products, "
            f"{_mib(vectors.working)} for {vectors.rows} Lanczos vectors and what goes with them, "
            f"{_mib(vectors.kept)} kept.",
        )
        free = free_bytes(self.view.device)
        options = []
        if math.isfinite(steps):
            options.append(f"--every {_round_up(steps * (1 - OVERHEAD) / OVERHEAD)}")
        if free is not None and total > 0.8 * free:
            options.append(f"--set memory_limit={int(0.8 * free / 2**20)}MiB")
        if options:
            yield Check(
                "suggestion",
                State.OK,
                f"lipprof attach {' '.join(options)} measures for at most {OVERHEAD:.0%} of the "
                "time. For series free of minibatch noise call lipprof.attach with loss= and "
                "probe=.",
            )


class Examiner(LoopFinder[Examination]):
    """Examines the first training loop that this process runs, and ends the process.

    Args:
        settings: of the measurement to be foreseen.
        show: is given the findings.
        say: is given what kept it from examining anything.
        model: see ``LoopFinder``.
        optimizer: likewise.
    """

    purpose = "examined"

    def __init__(
        self,
        settings: Settings,
        show: Callable[[Check], None],
        say: Callable[[str], None],
        *,
        model: str | None = None,
        optimizer: str | None = None,
    ) -> None:
        super().__init__(say, model=model, optimizer=optimizer)
        self._settings, self._show = settings, show

    def attach(self, model: nn.Module, optimizer: Optimizer, *, first: int = 0) -> None:  # noqa: ARG002
        """Begin the examination."""
        try:
            self.profiler = Examination(model, optimizer, self._settings)
        except LipprofError as error:
            self._give_up(f"nothing was examined: {error}")
            return
        self._stop()

    def conclude(self, attached: Examination) -> None:
        """Show what was found."""
        attached.close()
        for check in attached.findings():
            self._show(check)


def _layers_found(layers: list[LayerCheck]) -> Iterator[Check]:
    well = [f"{layer.kind} ({layer.count})" for layer in layers if layer.well]
    if well:
        text = f"second and third derivatives are right for {', '.join(well)}."
        yield Check("layers", State.OK, text)
    for layer in layers:
        if not layer.well:
            bad = {Derivative.MISSING, Derivative.WRONG} & {layer.second, layer.third}
            yield Check(
                f"layer {layer.kind} ({layer.count})",
                State.NOTE if bad or layer.second is Derivative.UNKNOWN else State.OK,
                f"second derivative {layer.second.value}; third {layer.third.value}: "
                f"{layer.reason}.",
            )


def free_bytes(device: torch.device) -> int | None:
    """Memory that a device has left; None where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _round_up(steps: float) -> int:
    """To 1, 2 or 5 times a power of ten, and at least 1."""
    unit = 10 ** math.floor(math.log10(max(steps, 1)))
    return next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= steps)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size >= 2**20 else f"{size / 2**10:,.0f} KiB"


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
