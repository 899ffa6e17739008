"""The trials of AMOS's two optimizers, a table beside the measurements."""

from dataclasses import dataclass

from lipprof.advice import Choice, Losses, TrialOutcome
from lipprof.record.side_table import Column, SideTable


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTrial:
    """How a trial ended; see ``lipprof.advice.contest``."""

    iteration: int  # completed optimizer steps as it ended
    first_loss: float  # of the probe, by the first optimizer
    second_loss: float
    first_average: float  # at averaged parameters
    second_average: float
    before: float  # loss as it began; NaN: no margin was asked for
    num_gradients: int  # more than training took
    seconds: float  # wall time that it took
    incumbent: Choice
    winner: Choice

    @property
    def place(self) -> tuple[int]:
        """What no two trials of a run share; it grows."""
        return (self.iteration,)

    @property
    def reason(self) -> str:
        """Both optimizers' losses, in words."""
        first = Losses(self.first_loss, self.first_average)
        second = Losses(self.second_loss, self.second_average)
        return TrialOutcome(first, second, self.incumbent, self.before).reason


TRIALS = SideTable(
    RecordedTrial,
    "trial",
    axis="trial",
    length=64,  # trials come ever more rarely
    columns=(
        Column("iteration", "i8", "1", "completed optimizer steps as the trial ended"),
        Column("first_loss", "f8", "loss", "of the probe, by the first optimizer"),
        Column("second_loss", "f8", "loss", "of the probe, by the second optimizer"),
        Column("first_average", "f8", "loss", "the first at averaged parameters"),
        Column("second_average", "f8", "loss", "the second at averaged parameters"),
        Column("before", "f8", "loss", "as the trial began, where a margin was asked for"),
        Column("num_gradients", "i8", "1", "gradients more than training took"),
        Column("seconds", "f8", "s", "wall time that it took"),
        Column("incumbent", "i1", "1", "who stepped before", Choice),
        Column("winner", "i1", "1", "who went on", Choice),
    ),
)
