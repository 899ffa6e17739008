"""Trials of AMOS's two optimizers: who won, in a sentence."""

from collections.abc import Sequence

from lipprof.advice import Entry
from lipprof.record import RecordedTrial
from lipprof.report.formats import duration, plural


def trials_sentence(trials: Sequence[RecordedTrial]) -> str | None:
    """Say how the last trial ended and what all of them cost; None where there was none."""
    if not trials:
        return None
    last = trials[-1]
    gradients = sum(trial.num_gradients for trial in trials)
    seconds = duration(sum(trial.seconds for trial in trials))
    winner = Entry(last.winner, bool(last.winner_calibrated))
    stayed = winner == Entry(last.incumbent)
    return (
        f"{plural(len(trials), 'trial')} of both optimizers, {gradients:,} gradients, {seconds}; "
        f"in the last the {winner.label} one {'stayed' if stayed else 'took over'} (iteration "
        f"{last.iteration:,}): {last.reason}."
    )
