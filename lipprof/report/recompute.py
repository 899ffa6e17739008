"""The answer that another rule would have given, from the recorded series and without training.

The series go through a fresh ``Advisor``, measurement after measurement, as they did in the run:
hysteresis and dwell depend on the order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipprof.advice import Advisor, Choice, Recommendation
from lipprof.errors import RunFileError
from lipprof.record import Run, recorded_evidence
from lipprof.report import derived


@dataclass(frozen=True, slots=True)
class Difference:
    """A tensor for which two recommendations differ."""

    name: str
    numel: int
    recorded: Choice
    recomputed: Choice


def recompute(run: Run, **changes: Any) -> Recommendation:
    """Recompute the recommendation at the last measurement that did not fail.

    Args:
        run: the run.
        changes: ``rule``, ``threshold``, ``hysteresis``, ``dwell`` or ``warmup`` in place of the
            run's own; those that are None are ignored.

    Returns:
        The recommendation.

    Raises:
        RunFileError: the run has no measurement that did not fail, or none of what the rule needs.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    advisor = Advisor.of(run.tensor_names, run.settings.model_copy(update=changes))
    answer = None
    for i in derived.usable(run):
        measurement = run.measurement(int(i))
        evidence = recorded_evidence(measurement, run.tensor_names, run.tensor_numel)
        if evidence.first is not None or not advisor.rule.needs_candidates:
            answer = advisor.advise(evidence)
    if answer is None and advisor.rule.needs_candidates:
        raise RunFileError(
            f"Rule {advisor.rule} compares the next steps of AMOS's two optimizers, and {run.path} "
            "has none. Record a run with descents=True or rule='descent', or choose another rule."
        )
    if answer is None:
        raise RunFileError(f"{run.path} has no measurement to recompute from.")
    return answer


def differences(recomputed: Recommendation, recorded: Sequence[int]) -> list[Difference]:
    """List where a recomputed recommendation differs from the recorded choices, largest first.

    Args:
        recomputed: the recommendation.
        recorded: codes of the recorded choices, (T,).

    Returns:
        One entry for each tensor that differs.
    """
    where = np.flatnonzero(recomputed.choice != np.asarray(recorded)).tolist()
    return [
        Difference(
            recomputed.names[i],
            int(recomputed.numel[i]),
            Choice(int(recorded[i])),
            Choice(int(recomputed.choice[i])),
        )
        for i in sorted(where, key=lambda i: -recomputed.numel[i])
    ]
