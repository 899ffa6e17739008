"""One optimizer whose steps are calibrated: hooks that scale its learning rates, and readings.

Before a step its learning rates are multiplied by a factor, after it they are put back, so that
schedulers only ever meet their own values.  While the length grows, the schedule is passed over;
afterwards its shape is kept: a length m is m times the scheduled rate over the largest scheduled so
far.  Where calibration failed it is the scheduled rate, bit for bit.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lipprof.advice import Outcome, StepCubic, StepLength, about_right, anchor, verdict
from lipprof.curvature import ParameterView, ProbeLoss, move_to, undisturbed, weighted_gradient
from lipprof.errors import NonfiniteError
from lipprof.linalg.inner import dot

_log = logging.getLogger("lipprof")

EVERY = 2
"""Iterations between readings."""

State = dict[str, Any]


class ProbeGradient:
    """The probe's loss and gradient at the present parameters."""

    def __init__(self, view: ParameterView, loss: ProbeLoss, training: bool) -> None:
        self.view, self.loss, self.training = view, loss, training
        self.num_gradients = 0

    def __call__(self) -> tuple[float, Float[Tensor, " n"]]:
        """Evaluate both.

        Returns:
            f(θ) and ∇f(θ).

        Raises:
            NonfiniteError: one of them is NaN or infinite.
        """
        self.num_gradients += 1
        with undisturbed(self.loss.model, training=self.training), torch.enable_grad():
            return weighted_gradient(self.loss.terms(), self.view)


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a step that is read begins."""

    parameters: Float[Tensor, " n"]
    loss: float
    gradient: Float[Tensor, " n"]


class Side:
    """One optimizer, its factor and the hooks that apply it."""

    def __init__(
        self,
        index: int,
        optimizer: Optimizer,
        given: float,
        probe: ProbeGradient,
        strict: bool,
        note: Callable[["Side", StepCubic | None], None],
    ) -> None:
        self.index, self.probe, self.length = index, probe, StepLength()
        self.factor = 1.0
        self._strict, self._note = strict, note
        self._given = given  # the largest learning rate asked for, as far as known
        self._peak = 0.0  # the largest that was scheduled
        self._seconds = self._since = 0.0
        self._scheduled: list[Any] | None = None
        self._start: _Start | None = None
        self._optimizer = optimizer

    @property
    def growing(self) -> bool:
        """Whether it has begun and is not decided."""
        return self.length.growing and self.length.length is not None

    @property
    def verdict(self) -> str:
        """What became of the given learning rate."""
        if self.length.growing and self.length.length is None:
            return "not begun: no step was taken"
        return verdict(self.length.outcome, self.times_given)

    @property
    def confirms(self) -> bool:
        """Whether the given learning rate is about right, or applies because nothing else does."""
        unknown = self.length.length is None or self.length.outcome is Outcome.FAILED
        return unknown or about_right(self.times_given)

    @property
    def times_given(self) -> float:
        """The calibrated learning rate over the given one."""
        length = self.length.length
        return 1.0 if length is None or not self._given else length / self._given

    def take_seconds(self) -> float:
        """Wall time since the last call that was spent here."""
        seconds = self._seconds + time.perf_counter() - self._since
        self._seconds, self._since = 0.0, time.perf_counter()
        return seconds

    def state_dict(self) -> State:
        """Return what ``load_state_dict`` needs to go on exactly."""
        own = {"given": self._given, "peak": self._peak}
        return own | {"length": self.length.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Go on where ``state_dict`` was taken."""
        self._given, self._peak = state["given"], state["peak"]
        self.length.load_state_dict(state["length"])

    def hooks(self) -> list[RemovableHandle]:
        """Register the two hooks; to be removed by the caller."""
        return [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._put_back(optimizer)  # a step that raised did not
        scheduled = [group["lr"] for group in optimizer.param_groups]
        reference = max(float(rate) for rate in scheduled)
        self._peak = max(self._peak, reference)
        self._given = max(self._given, self._peak, largest(optimizer, "initial_lr", "max_lr"))
        self._start = None
        if self.length.growing and reference > 0 and self._is_read:
            self._guarded(self._read_start)
        self.factor = self._factor_for(reference)
        if self.factor != 1.0:
            self._scheduled = scheduled
            for group, rate in zip(optimizer.param_groups, scheduled, strict=True):
                group["lr"] = rate * self.factor

    def _factor_for(self, reference: float) -> float:
        length, outcome = self.length.length, self.length.outcome
        if length is None or not reference or outcome is Outcome.FAILED:
            return 1.0
        return length / (reference if self.length.growing else self._peak)

    @property
    def _is_read(self) -> bool:
        return self.length.length is None or self.length.iteration % EVERY == 0

    def _read_start(self) -> None:
        self._start = _Start(self.probe.view.snapshot(), *self.probe())

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        rate = max(float(group["lr"]) for group in optimizer.param_groups)
        self._put_back(optimizer)
        if self.length.growing and rate > 0:
            self._guarded(self._decide, rate)

    def _put_back(self, optimizer: Optimizer) -> None:
        if self._scheduled is not None:
            for group, rate in zip(optimizer.param_groups, self._scheduled, strict=True):
                group["lr"] = rate
            self._scheduled = None

    def _decide(self, rate: float) -> None:
        start, self._start = self._start, None
        if start is None:
            self.length.advance()
            return
        step = self.probe.view.snapshot() - start.parameters
        if not step.any():  # as a GradScaler's, after an overflow
            return
        cubic = (
            self._anchor(start, step, rate)
            if self.length.length is None
            else self._observe(start, step)
        )
        if self.length.length is None:
            self.length.postpone()
            return
        self.length.advance()
        self._note(self, cubic)

    def _anchor(self, start: "_Start", step: Tensor, rate: float) -> StepCubic | None:
        """Rescale the first step; undo it and wait for the next where the loss rises along it."""
        view, origin = self.probe.view, start.parameters
        last: StepCubic | None = None

        def read(scale: float) -> StepCubic | None:
            nonlocal last
            move_to(view, origin + scale * step)
            last = self._cubic(start, scale * step)
            return last

        scale = anchor(read)
        move_to(view, origin if scale is None else origin + scale * step)
        if scale is not None:
            self.length.start(scale * rate)
        return last

    def _observe(self, start: "_Start", step: Tensor) -> StepCubic | None:
        """Feed the decision; undo a step whose end is NaN or infinite."""
        cubic = self._cubic(start, step)
        if cubic is None:
            move_to(self.probe.view, start.parameters)
        self.length.observe(cubic)
        return cubic

    def _cubic(self, start: "_Start", step: Tensor) -> StepCubic | None:
        """The loss along a step, at whose end the parameters are; None where it is not finite."""
        try:
            loss, gradient = self.probe()
        except NonfiniteError:
            return None
        before = start.loss, float(dot(start.gradient, step))
        after = loss, float(dot(gradient, step))
        return StepCubic.through(before, after, eps=self.probe.view.rounding)

    def _guarded(self, action: Callable[..., None], *arguments: Any) -> None:
        self._since = time.perf_counter()
        try:
            action(*arguments)
        except Exception as error:
            self.length.fail()
            if self._strict:
                raise
            _log.warning(
                "lipprof: the learning rate is not calibrated and training goes on with the given "
                "one. %s: %s",
                type(error).__name__,
                error,
            )
        self._seconds += time.perf_counter() - self._since


def largest(optimizer: Optimizer, *keys: str) -> float:
    """The largest learning rate under any of the keys, over the groups; 0 where there is none."""
    rates = [float(group[key]) for group in optimizer.param_groups for key in keys if key in group]
    return max(rates, default=0.0)
