"""How far a run is, and how long it still takes, from nothing but what the run file says.

The end is known where the settings name one: ``until``, or the last of ``at``.  The pace is the
median over the latest measurements, so that neither the pause of a resumed run nor a slow start
decides it.
"""

import enum
from dataclasses import dataclass

import numpy as np

from lipprof.record import Run

RECENT = 10  # intervals between measurements that the pace is taken from


class State(enum.Enum):
    """What became of a run; the value is how a person is told."""

    LIVE = "running"
    FINISHED = "finished"
    STOPPED = "stopped before its end: killed, or the machine went down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands."""

    state: State
    iteration: int | None  # of the last measurement; None: there is none
    last: int | None  # iteration after which nothing is measured; None: not known
    since_measurement: float  # s; NaN: not known
    seconds_left: float  # until ``last``; NaN: not known

    @property
    def share(self) -> float:
        """Share of the iterations up to ``last`` that are done; NaN where that is not known."""
        if self.last is None or self.iteration is None:
            return float("nan")
        return min(1.0, self.iteration / self.last) if self.last else 1.0


def progress(run: Run, now: float) -> Progress:
    """Say how far a run is.

    Args:
        run: the run.
        now: seconds since 1970.

    Returns:
        The progress; ``seconds_left`` is 0 for a run that takes longer than its pace foretells.
    """
    state = State.FINISHED if run.finished else State.LIVE if run.live else State.STOPPED
    iteration = int(run["iteration"][-1]) if len(run) else None
    last = _last_iteration(run)
    since = now - float(run["time"][-1]) if len(run) else np.nan
    left = np.nan
    if state is State.LIVE and iteration is not None and last is not None:
        left = float(np.maximum(0, _pace(run) * max(0, last - iteration) - since))
    return Progress(
        state=state,
        iteration=iteration,
        last=last,
        since_measurement=float(np.maximum(0, since)),
        seconds_left=left,
    )


def _last_iteration(run: Run) -> int | None:
    at = run.settings.at
    return max(at, default=None) if at is not None else run.settings.until


def _pace(run: Run) -> float:
    """Seconds per iteration; NaN before two measurements."""
    iterations = np.diff(run["iteration"][-RECENT - 1 :])
    seconds = np.diff(run["time"][-RECENT - 1 :])
    known = (iterations > 0) & np.isfinite(seconds)
    return float(np.median(seconds[known] / iterations[known])) if known.any() else np.nan
