"""The trial of AMOS's two optimizers, a table beside the measurements."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lipprof.advice import Choice, Entry, Losses, TrialOutcome
from lipprof.record.side_table import Column, SideTable

ENTRIES = {
    Entry(side, calibrated): prefix + ("_calibrated" if calibrated else "")
    for side, prefix in ((Choice.FIRST, "first"), (Choice.SECOND, "second"))
    for calibrated in (False, True)
}
"""Prefixes of the columns of every entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTrial:
    """How a trial ended; see ``lipprof.advice.contest``.

    Losses are of the probe: at the parameters, and at averaged ones.  NaN: who did not compete, or
    what was not evaluated; infinite: who diverged.
    """

    iteration: int  # completed optimizer steps as it ended
    first_loss: float
    first_average: float
    second_loss: float
    second_average: float
    first_calibrated_loss: float = np.nan
    first_calibrated_average: float = np.nan
    second_calibrated_loss: float = np.nan
    second_calibrated_average: float = np.nan
    before: float = np.nan  # as it began
    num_gradients: int  # more than training took
    seconds: float  # wall time that it took
    incumbent: Choice
    winner_calibrated: int = 0  # 1: the winner goes on with calibrated learning rates
    winner: Choice

    @classmethod
    def of(
        cls, outcome: TrialOutcome, winner: Entry, *, incumbent: Choice, **fields: Any
    ) -> "RecordedTrial":
        """Write down an outcome.

        Args:
            outcome: all losses.
            winner: who went on.
            incumbent: the side that stepped before.
            fields: ``iteration``, ``num_gradients`` and ``seconds``.

        Returns:
            The row.
        """
        losses: dict[str, Any] = {}
        for entry, (end, average) in outcome.losses.items():
            losses |= {f"{ENTRIES[entry]}_loss": end, f"{ENTRIES[entry]}_average": average}
        return cls(
            before=outcome.before,
            incumbent=incumbent,
            winner=winner.side,
            winner_calibrated=int(winner.calibrated),
            **losses,
            **fields,
        )

    @property
    def place(self) -> tuple[int]:
        """What no two trials of a run share; it grows."""
        return (self.iteration,)

    @property
    def losses(self) -> dict[Entry, Losses]:
        """Of all that competed, those of the incumbent first."""
        losses = {
            entry: Losses(getattr(self, f"{name}_loss"), getattr(self, f"{name}_average"))
            for entry, name in ENTRIES.items()
        }
        order = sorted(losses, key=lambda e: (e.calibrated, e.side is not self.incumbent))
        return {entry: losses[entry] for entry in order if not np.isnan(losses[entry].end)}

    @property
    def reason(self) -> str:
        """All losses, in words."""
        return TrialOutcome(self.losses).reason


TRIALS = SideTable(
    RecordedTrial,
    "trial",
    axis="trial",
    length=64,
    columns=(
        Column("iteration", "i8", "1", "completed optimizer steps as the trial ended"),
        *(
            Column(f"{name}_{kind}", "f8", "loss", f"of the probe, by the {entry.label}, {where}")
            for entry, name in ENTRIES.items()
            for kind, where in (("loss", "at its parameters"), ("average", "at averaged ones"))
        ),
        Column("before", "f8", "loss", "of the probe, where the trial began"),
        Column("num_gradients", "i8", "1", "gradients more than training took"),
        Column("seconds", "f8", "s", "wall time that it took"),
        Column("incumbent", "i1", "1", "who stepped before", Choice),
        Column("winner_calibrated", "i1", "1", "1: the winner goes on calibrated"),
        Column("winner", "i1", "1", "who went on", Choice),
    ),
)
