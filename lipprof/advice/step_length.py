"""Step-length calibration: start small, grow under the cubic brake, freeze.  Numbers in and out.

Along a step d that an optimizer took from θ, with x = 1 at its end,

    f(θ + x d) ≈ f(θ) − γx + hx²/2 + Tx³/6,

and its *room* is ELMO's x* of γ, h and |T| (eq. 7): how many times d the loss allows, in the worst
case of the third order.  Room does not depend on the unit of the loss or of the parameters.

1. Start small: the first step is ``START`` of what was asked for, or less, so that its room is at
   least ``START_ROOM``.  A learning rate that is too high is then treated as one that is too low.
2. Growth by room^(1/``RELAXATION``) an iteration, at most ``FASTEST``, on moving averages of γ/m,
   h/m² and |T|/m³ for steps of length m.
3. Freeze at the first averaged room of ``FULL`` or less, or after ``LIMIT`` iterations.  The
   given length is not gone back to where it is near: jumping there from 0.6 of it cost a GPT 0.08.

The constants were chosen on a character GPT, where room falls from about 2 to below 1 between 0.3
and 1.1 of the tuned learning rate, for AdamW and Muon alike (``examples/amos/calibration.md``).
"""

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

START = 1 / 8
START_ROOM = 16.0
RELAXATION = 8.0
FASTEST = 1.15
SMOOTHING = 0.5
FULL = 1.05
LIMIT = 150
NEAR = 2.0  # up to it a learning rate is called about right
ANCHOR_TRIES = 12
POSTPONED = 20  # first steps that may be undone because the loss does not fall along them
ROUNDINGS = 4  # of f that may add up in T
RANGE = 4096.0  # room beyond it, or below its inverse, counts as that


class Outcome(enum.IntEnum):
    """How far calibration is; the codes are those of the run file."""

    GROWING = 0
    FROZEN = 1  # no room was left
    LIMITED = 2  # room was left after ``LIMIT`` iterations
    DIVERGED = 3  # the loss became NaN or infinite: that step was undone, and half of it kept
    FAILED = 4  # nothing was decided; the given length applies

    @property
    def label(self) -> str:
        """The code in words."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class StepCubic:
    """The loss along a step: γ, h and T.  Unit: loss."""

    slope: float
    curvature: float
    bend: float

    @classmethod
    def through(
        cls, start: tuple[float, float], end: tuple[float, float], *, eps: float
    ) -> "StepCubic":
        """Fit the cubic that has the given values and derivatives (Hermite).

        Along a short step T is a difference of nearly equal numbers: what rounding can make of it
        is taken out of its absolute value.

        Args:
            start: f(θ) and its derivative along d there.
            end: the same at θ + d.
            eps: relative rounding error of f.

        Returns:
            The cubic.
        """
        bend = 12 * ((start[1] + end[1]) / 2 - (end[0] - start[0]))
        noise = 12 * ROUNDINGS * eps * max(abs(start[0]), abs(end[0]))
        bend = math.copysign(max(abs(bend) - noise, 0.0), bend)
        return cls(-start[1], end[1] - start[1] - bend / 2, bend)

    @property
    def room(self) -> float:
        """x*, between 1/``RANGE`` and ``RANGE``; 1/``RANGE`` where the step does not descend."""
        if not self.slope > 0:
            return 1 / RANGE
        root = math.hypot(self.curvature, math.sqrt(2 * abs(self.bend)) * math.sqrt(self.slope))
        if self.curvature >= 0:
            best = 2 * self.slope / (self.curvature + root) if root else RANGE
        else:
            best = (root - self.curvature) / abs(self.bend) if self.bend else RANGE
        return min(max(best, 1 / RANGE), RANGE)

    def scaled(self, factor: float) -> "StepCubic":
        """The cubic along ``factor`` times the step."""
        return StepCubic(
            self.slope * factor, self.curvature * factor**2, abs(self.bend) * factor**3
        )


def anchor(read: Callable[[float], StepCubic | None]) -> float | None:
    """Find the multiple of a step to start with: ``START``, or less where that has too little room.

    Args:
        read: the cubic along a multiple of the step; None where the loss there is not finite.

    Returns:
        The multiple; None where the loss does not fall along the step.
    """
    scale = START
    for _ in range(ANCHOR_TRIES):
        cubic = read(scale)
        if cubic is not None and not cubic.slope > 0:
            return None
        room = 1 / RANGE if cubic is None else cubic.room
        if room >= START_ROOM / 2:
            break
        scale *= room / START_ROOM
    return scale


class StepLength:
    """The length of an optimizer's steps while it is calibrated, and from then on."""

    def __init__(self) -> None:
        self.outcome = Outcome.GROWING
        self.length: float | None = None  # None until it is anchored
        self.iteration = 0  # since then
        self.room = START_ROOM
        self._average: StepCubic | None = None  # of steps of length 1

    @property
    def growing(self) -> bool:
        """Whether nothing is decided yet."""
        return self.outcome is Outcome.GROWING

    def start(self, length: float) -> None:
        """Begin to grow from an anchored length."""
        self.length, self.iteration = length, 0

    def postpone(self) -> None:
        """Take in that the loss did not fall along a step that was to be the first."""
        self.iteration += 1
        if self.iteration >= POSTPONED:
            self.fail()

    def fail(self) -> None:
        """Give up: the given length applies."""
        self.outcome = Outcome.FAILED

    def observe(self, cubic: StepCubic | None) -> None:
        """Take in the cubic along a step of the present length; None: the loss was not finite."""
        length = self._anchored()
        if cubic is None:
            self.length, self.outcome, self.room = length / 2, Outcome.DIVERGED, 0.0
            return
        unit = cubic.scaled(1 / length)
        if self._average is not None:
            unit = _mixed(self._average, unit)
        self._average = unit
        self.room = unit.scaled(length).room

    def advance(self) -> None:
        """Decide after a step: grow or freeze."""
        if not self.growing:
            return
        length = self._anchored()
        if self.room <= FULL:
            self.outcome = Outcome.FROZEN
        elif self.iteration >= LIMIT:
            self.outcome = Outcome.LIMITED
        else:
            self.length = length * min(FASTEST, self.room ** (1 / RELAXATION))
        self.iteration += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly: plain numbers."""
        average = self._average
        return {
            "outcome": int(self.outcome),
            "length": self.length,
            "iteration": self.iteration,
            "room": self.room,
            "average": average and (average.slope, average.curvature, average.bend),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.outcome = Outcome(state["outcome"])
        self.length, self.iteration, self.room = (
            state[key] for key in ("length", "iteration", "room")
        )
        self._average = state["average"] and StepCubic(*state["average"])

    def _anchored(self) -> float:
        assert self.length is not None, "start() comes first"
        return self.length


def about_right(factor: float) -> bool:
    """Whether a given learning rate is confirmed.

    Args:
        factor: calibrated learning rate over the given one.

    Returns:
        Whether the two are within ``NEAR``.
    """
    return 1 / NEAR <= factor <= NEAR


def verdict(outcome: Outcome, factor: float) -> str:
    """Say in a sentence what became of a learning rate.

    Args:
        outcome: how calibration stands.
        factor: learning rate in use over the given one.

    Returns:
        The sentence, without its full stop.
    """
    match outcome:
        case Outcome.GROWING:
            return f"growing, at {_times(factor)} the given learning rate"
        case Outcome.FAILED:
            return "calibration failed, and the given learning rate applies"
    if about_right(factor):
        found = f"about right: now {_times(factor)}"
    elif factor > 1:
        found = f"too low: raised {_times(factor)}"
    else:
        found = f"too high: lowered {_times(1 / factor)}"
    size = f"the given learning rate was {found}"
    reason = {
        Outcome.LIMITED: f"; after {LIMIT} iterations there was still room to grow",
        Outcome.DIVERGED: "; the loss became NaN or infinite on the way",
    }
    return size + reason.get(outcome, "")


def _times(factor: float) -> str:
    return f"{factor:.2g}×" if factor < 100 else f"{factor:.0f}×"


def _mixed(old: StepCubic, new: StepCubic) -> StepCubic:
    pairs = (
        (old.slope, new.slope),
        (old.curvature, new.curvature),
        (abs(old.bend), abs(new.bend)),
    )
    return StepCubic(*(SMOOTHING * a + (1 - SMOOTHING) * b for a, b in pairs))
