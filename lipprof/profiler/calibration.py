"""``lipprof.calibrate``: find the length of an optimizer's steps in its first iterations.

What decides is ``lipprof.advice.step_length``; it is fed with the loss and gradient of a fixed
probe at both ends of every other step (``calibrated_step``).  AMOS has a factor for each of its two
optimizers, found along that optimizer's own part of the step, from the first step that it takes.

Cost: a gradient of the probe an iteration on average until it is decided, some 40 to 60, 2 to 13
for the first step, and a copy of θ, a gradient and a step, 3n numbers, in passing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lipprof.advice import Outcome, StepCubic
from lipprof.curvature import LossClosure, ParameterView, ProbeLoss
from lipprof.errors import ConfigError
from lipprof.optim import AMOS
from lipprof.optim.arm import check_step
from lipprof.profiler.calibrated_step import ProbeGradient, Side, State, largest
from lipprof.profiler.sources.probe import Probe
from lipprof.record import CalibrationReading
from lipprof.settings import Settings, load_settings

Record = Callable[[CalibrationReading], None]


def calibrate(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    loss: LossClosure,
    probe: Sequence[Any] | None = None,
    mode: str = "eval",
    reduction: str = "mean",
    seed: int = 0,
) -> "Calibration":
    """Find the learning rate of an optimizer during its first iterations, whatever it was given.

    The ratio between parameter groups stays; ``group["lr"]`` remains the scheduled value.

    Args:
        model: whose parameters are optimized.
        optimizer: any with ``lr`` in its groups; an ``AMOS`` gets a factor for each side.
        loss: ``loss(model) -> scalar`` over a fixed probe batch.
        probe: microbatches for ``loss(model, batch)``, weighted by their sizes.
        mode: of the modules while the closure is evaluated, ``eval`` or ``train``.
        reduction: of the closure over a microbatch, ``mean`` or ``sum``.
        seed: of the global generators while the closure is evaluated.

    Returns:
        The calibration at work.  It holds the factor: ``close`` it only when training is over.

    Raises:
        ConfigError: an optimizer without learning rate, or one that searches its own step length;
            an invalid argument.
    """
    settings = load_settings(calibrate=True, mode=mode, reduction=reduction, seed=seed, strict=True)
    closure = Probe(loss, probe).of(model, settings)
    calibration = calibration_of(optimizer, ParameterView.of(model, optimizer), closure, settings)
    assert calibration is not None
    calibration.install()
    return calibration


def calibration_of(
    optimizer: Optimizer,
    view: ParameterView,
    loss: ProbeLoss | None,
    settings: Settings,
    record: Record | None = None,
) -> "Calibration | None":
    """Prepare calibration where the settings ask for it; it begins with ``install``.

    Args:
        optimizer: as for ``calibrate``.
        view: the parameters that it steps.
        loss: of the probe; None where there is no closure.
        settings: ``calibrate``, ``mode`` and ``strict``.
        record: is told every reading.

    Returns:
        The calibration; None where it is off.

    Raises:
        ConfigError: there is no closure, or the optimizer cannot be calibrated.
    """
    if not settings.calibrate:
        return None
    if loss is None:
        raise ConfigError(
            "calibrate=True compares the loss at both ends of a step, which takes a fixed batch: "
            "pass loss= (a closure over a probe batch)."
        )
    return Calibration(
        optimizer, view, loss, settings.mode == "train", strict=settings.strict, record=record
    )


class Calibration:
    """Step-length calibration at work; made by ``calibrate`` and by ``attach(calibrate=True)``."""

    def __init__(
        self,
        optimizer: Optimizer,
        view: ParameterView,
        loss: ProbeLoss,
        training: bool,
        *,
        strict: bool = True,
        record: Record | None = None,
    ) -> None:
        probe = ProbeGradient(view, loss, training)
        if isinstance(optimizer, AMOS):
            optimizers, keys = optimizer.optimizers, ("base_lr", "second_base_lr")
        else:
            optimizers, keys = (optimizer,), ("lr",)
        for each in optimizers:
            _check(each)
        self.trace: list[CalibrationReading] = []
        self._record = record
        self.iteration = 0
        self._noted = 0  # gradients that the readings tell of
        self.sides = [
            Side(index, each, largest(optimizer, keys[index]), probe, strict, self._note)
            for index, each in enumerate(optimizers)
        ]
        self._optimizer = optimizer
        self._hooks: list[RemovableHandle] = []

    def install(self) -> None:
        """Begin with the optimizer's next step."""
        for side in self.sides:
            self._hooks += side.hooks()
        self._hooks.append(self._optimizer.register_step_post_hook(self._count))

    @property
    def factor(self) -> float:
        """Learning rate of the (first) optimizer's newest step over the scheduled one."""
        return self.sides[0].factor

    @property
    def factors(self) -> tuple[float, ...]:
        """The same for every optimizer."""
        return tuple(side.factor for side in self.sides)

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """How far calibration is, for every optimizer."""
        return tuple(side.length.outcome for side in self.sides)

    @property
    def growing(self) -> bool:
        """Whether the learning rate of an optimizer that has begun is not found yet."""
        return any(side.growing for side in self.sides)

    @property
    def confirms(self) -> bool:
        """Whether all given learning rates are about right."""
        return all(side.confirms for side in self.sides)

    @property
    def verdicts(self) -> tuple[str, ...]:
        """What became of the given learning rate, in a sentence for every optimizer."""
        return tuple(side.verdict for side in self.sides)

    @property
    def num_gradients(self) -> int:
        """Gradients of the probe that were paid for."""
        return self.sides[0].probe.num_gradients

    def state_dict(self) -> State:
        """Return what ``load_state_dict`` needs to go on exactly: plain numbers."""
        sides = [side.state_dict() for side in self.sides]
        return {
            "iteration": self.iteration,
            "sides": sides,
            "num_gradients": self.num_gradients,
            "noted": self._noted,
        }

    def load_state_dict(self, state: State) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            ConfigError: the state is of another optimizer.
        """
        if len(state["sides"]) != len(self.sides):
            raise ConfigError(
                f"The state has {len(state['sides'])} factors, this optimizer {len(self.sides)}: "
                "one of the two is an AMOS."
            )
        self.iteration = state["iteration"]
        self.sides[0].probe.num_gradients = state["num_gradients"]
        self._noted = state["noted"]
        for side, own in zip(self.sides, state["sides"], strict=True):
            side.load_state_dict(own)

    def close(self) -> None:
        """Let go of the optimizer, whose learning rate is the scheduled one again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __enter__(self) -> "Calibration":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count(self, *_: Any) -> None:
        self.iteration += 1

    def _note(self, side: "Side", cubic: StepCubic | None) -> None:
        length = side.length
        assert length.length is not None
        reading = CalibrationReading(
            iteration=self.iteration,
            side=side.index,
            learning_rate=length.length,
            factor=side.times_given,
            room=length.room,
            slope=math.nan if cubic is None else cubic.slope,
            curvature=math.nan if cubic is None else cubic.curvature,
            bend=math.nan if cubic is None else cubic.bend,
            num_gradients=self.num_gradients - self._noted,
            seconds=side.take_seconds(),
            outcome=length.outcome,
        )
        self._noted = self.num_gradients
        self.trace.append(reading)
        if self._record is not None:
            self._record(reading)


def _check(optimizer: Optimizer) -> None:
    name = type(optimizer).__name__
    if any("lr" not in group for group in optimizer.param_groups):
        raise ConfigError(
            f"{name} has a parameter group without `lr`: there is no step length to calibrate. "
            "Use an optimizer with a learning rate."
        )
    check_step(optimizer, "Calibration")
