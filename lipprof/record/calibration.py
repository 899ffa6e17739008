"""The trace of step-length calibration, a table beside the measurements."""

from dataclasses import dataclass

from lipprof.advice import Outcome
from lipprof.record.side_table import Column, SideTable


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReading:
    """One reading of the loss along a step, and what was decided."""

    iteration: int  # completed optimizer steps
    side: int  # 0: the optimizer, or AMOS's first; 1: AMOS's second
    learning_rate: float  # of the next step, largest over the parameter groups
    factor: float  # the same over the given learning rate
    room: float  # averaged x*: times the step that the loss allows; 1
    slope: float  # γ along the step; loss
    curvature: float  # loss
    bend: float  # third derivative along the step; loss
    num_gradients: int  # of the probe, that the reading took
    seconds: float  # wall time that it took
    outcome: Outcome

    @property
    def place(self) -> tuple[int, int]:
        """What no two readings of a run share; it grows."""
        return self.iteration, self.side


CALIBRATION = SideTable(
    CalibrationReading,
    "calibration",
    axis="reading",
    length=256,  # calibration takes at most some 80 readings per optimizer
    columns=(
        Column("iteration", "i8", "1", "completed optimizer steps"),
        Column("side", "i1", "1", "0: the optimizer, or AMOS's first; 1: AMOS's second"),
        Column("learning_rate", "f8", "1", "of the next step, largest over the parameter groups"),
        Column("factor", "f8", "1", "the same over the given learning rate"),
        Column("room", "f8", "1", "averaged x* of eq. 7 along the step; growth ends at 1"),
        Column("slope", "f8", "loss", "descent per step at its start"),
        Column("curvature", "f8", "loss", "second derivative along the step"),
        Column("bend", "f8", "loss", "third derivative along the step"),
        Column("num_gradients", "i8", "1", "gradients of the probe that the reading took"),
        Column("seconds", "f8", "s", "wall time that it took"),
        Column("outcome", "i1", "1", "how far calibration is", Outcome),
    ),
)
