"""The recommendation that was given at a measurement, rebuilt from what the run file recorded."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from lipprof.advice.recommendation import Choice, Recommendation
from lipprof.errors import RunFileError
from lipprof.record.measurement import Measurement

if TYPE_CHECKING:
    from lipprof.record.reader import Run

_USED = (
    "tensor_lipschitz", "tensor_lipschitz_upper", "tensor_threshold", "tensor_threshold_low",
    "tensor_threshold_high", "tensor_curvature", "tensor_slope",
)  # fmt: skip


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
    last = int(answered[-1])
    choice = choices[last]
    evidence = recorded_evidence(SimpleNamespace(**{name: run.row(name, last) for name in _USED}))
    threshold, (low, high) = evidence["newton_threshold"], evidence["threshold_range"]
    if run.settings.rule == "threshold":
        threshold = low = high = np.full_like(threshold, run.settings.threshold)
    unchanged = np.logical_and.accumulate(choices[answered][::-1] == choice)
    return Recommendation(
        iteration=int(run["iteration"][last]),
        rule=run.settings.rule,
        names=run.tensor_names,
        numel=run.tensor_numel,
        choice=choice,
        lipschitz=evidence["lipschitz"],
        lipschitz_upper=evidence["lipschitz_upper"],
        threshold=threshold,
        threshold_low=low,
        threshold_high=high,
        curvature=evidence["curvature"],
        slope=evidence["slope"],
        stable_for=np.where(choice == Choice.NONE, 0, unchanged.sum(axis=0) - 1),
    )


def recorded_evidence(measurement: Measurement | SimpleNamespace) -> dict[str, Any]:
    """What ``Advisor.advise`` was given at a measurement, as its keyword arguments."""
    return {
        "lipschitz": measurement.tensor_lipschitz,
        "lipschitz_upper": measurement.tensor_lipschitz_upper,
        "newton_threshold": measurement.tensor_threshold,
        "threshold_range": (
            measurement.tensor_threshold_low,
            measurement.tensor_threshold_high,
        ),
        "curvature": measurement.tensor_curvature,
        "slope": measurement.tensor_slope,
    }
