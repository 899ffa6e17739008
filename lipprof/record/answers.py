"""The recommendation that was given at a measurement, rebuilt from what the run file recorded."""

from typing import TYPE_CHECKING

import numpy as np

from lipprof.advice.recommendation import Choice, Recommendation
from lipprof.errors import RunFileError

if TYPE_CHECKING:
    from lipprof.record.reader import Run


def recorded_recommendation(run: "Run", rows: int) -> Recommendation:
    """Rebuild the last answer within the first measurements of a run.

    A failed measurement has no answer, and neither has the first of a run: a Lipschitz estimate
    takes two.

    Args:
        run: the run.
        rows: how many measurements count.

    Returns:
        The recommendation; ``stable_for`` counts the answers since the choice last changed.

    Raises:
        RunFileError: none of them has an answer.
    """
    choices = run["recommendation"][:rows]
    answered = np.flatnonzero((choices != Choice.NONE).any(axis=1))
    if answered.size == 0:
        raise RunFileError(
            f"{run.path} has no recommendation in its first {rows} measurements: it takes two that "
            "succeed, and diagonal_probes > 0."
        )
    measurement = run.measurement(int(answered[-1]))
    choice = measurement.recommendation
    threshold = measurement.tensor_threshold
    if run.settings.rule == "threshold":
        threshold = np.full_like(threshold, run.settings.threshold)
    unchanged = np.logical_and.accumulate(choices[answered][::-1] == choice)
    return Recommendation(
        iteration=measurement.iteration,
        rule=run.settings.rule,
        names=run.tensor_names,
        numel=run.tensor_numel,
        choice=choice,
        lipschitz=measurement.tensor_lipschitz,
        threshold=threshold,
        curvature=measurement.tensor_curvature,
        slope=measurement.tensor_slope,
        stable_for=np.where(choice == Choice.NONE, 0, unchanged.sum(axis=0) - 1),
    )
