"""The recommendation that was given at a measurement, rebuilt from what the run file recorded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from lipprof.advice import Choice, Evidence, Recommendation, rule_of
from lipprof.errors import RunFileError
from lipprof.record.measurement import Measurement

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
            "succeed after the warm-up, and diagonal_probes > 0."
        )
    measurement = run.measurement(int(answered[-1]))
    choice = measurement.recommendation
    rule = rule_of(run.settings.rule, run.settings.threshold)
    evidence = recorded_evidence(measurement, run.tensor_names, run.tensor_numel)
    ratio = rule.ratio(evidence)
    unchanged = np.logical_and.accumulate(choices[answered][::-1] == choice)
    return Recommendation(
        rule=rule,
        evidence=evidence,
        low=ratio.low,
        high=ratio.high,
        choice=choice,
        stable_for=np.where(choice == Choice.NONE, 0, unchanged.sum(axis=0) - 1),
        warmup=run.settings.warmup,
    )


def recorded_evidence(measurement: Measurement, names: Sequence[str], numel: ArrayLike) -> Evidence:
    """Gather what a measurement tells the rules.

    Args:
        measurement: the measurement.
        names: of its tensors.
        numel: their sizes.

    Returns:
        The evidence.
    """
    return Evidence(
        iteration=measurement.iteration,
        names=names,
        numel=np.asarray(numel, np.int64),
        lipschitz=measurement.tensor_lipschitz,
        lipschitz_upper=measurement.tensor_lipschitz_upper,
        threshold=measurement.tensor_threshold,
        threshold_low=measurement.tensor_threshold_low,
        threshold_high=measurement.tensor_threshold_high,
        curvature=measurement.tensor_curvature,
        slope=measurement.tensor_slope,
    )
