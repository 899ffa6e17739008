"""What was recommended at a measurement and what AMOS made of it, rebuilt from the run file.

Reasons are not stored: they follow from the recorded numbers, to the last digit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipprof.advice import Candidate, Choice, Evidence, Recommendation, Rule, rule_of
from lipprof.errors import RunFileError
from lipprof.record.measurement import Floats, Measurement, Status
from lipprof.record.trials import RecordedTrial

if TYPE_CHECKING:
    from lipprof.record.reader import Run

_USED = (
    "iteration", "tensor_lipschitz", "tensor_lipschitz_upper", "tensor_threshold",
    "tensor_threshold_low", "tensor_threshold_high", "tensor_curvature", "tensor_slope",
)  # fmt: skip
_CANDIDATES = (
    "first_slope", "first_curvature", "first_descent",
    "second_slope", "second_curvature", "second_descent",
)  # fmt: skip

BLOCK_ROWS = 256

NOT_RECOMMENDED = "not by the recommendation of this run"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSwitch:
    """AMOS moved a tensor between two measurements that did not fail, seen at the later one."""

    iteration: int  # of that measurement
    tensor: int  # its position in ``tensor_names``
    name: str
    before: Choice
    to: Choice
    reason: str


def assignment_changes(run: "Run") -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find where what AMOS ran differs from the measurement before, failed ones left out.

    Args:
        run: the run.

    Returns:
        Positions of measurements and of tensors, one of each per switch, in the order of time.
    """
    good = np.flatnonzero(run["status"] != Status.FAILED)
    assigned = run["assigned"][good]
    before, after = assigned[:-1], assigned[1:]
    moved = (after != before) & (after != Choice.NONE) & (before != Choice.NONE)
    rows, tensors = np.nonzero(moved)
    return good[1:][rows], tensors


def recorded_switches(run: "Run", latest: int | None = None) -> list[RecordedSwitch]:
    """List AMOS's switches with their reasons, in the order of time.

    Args:
        run: the run.
        latest: how many of the latest; None: all.

    Returns:
        One entry per tensor that moved.
    """
    rows, tensors = assignment_changes(run)
    first = 0 if latest is None else max(0, len(rows) - latest)
    rows, tensors = rows[first:], tensors[first:]
    switches, trials = [], run.trials
    good = np.flatnonzero(run["status"] != Status.FAILED)
    for row, answer in _answers(run, np.unique(rows)):
        before = int(run["iteration"][good[np.searchsorted(good, row) - 1]])
        between = [trial for trial in trials if before < trial.iteration <= answer.iteration]
        for tensor in tensors[rows == row].tolist():
            to = Choice(int(run["assigned"][row, tensor]))
            switches.append(
                RecordedSwitch(
                    iteration=answer.iteration,
                    tensor=tensor,
                    name=run.tensor_names[tensor],
                    before=to.other,
                    to=to,
                    reason=_reason(answer, tensor, to, between),
                )
            )
    return switches


def _reason(
    answer: Recommendation, tensor: int, to: Choice, trials: Sequence[RecordedTrial]
) -> str:
    """Why a tensor moved: the trial since the measurement before, or the answer of this one."""
    won = [trial.reason for trial in trials if trial.winner is to]
    if won:
        return won[-1]
    return answer.reason(tensor) if answer.choice[tensor] == to else NOT_RECOMMENDED


def _answers(run: "Run", rows: NDArray[np.intp]) -> Iterator[tuple[int, Recommendation]]:
    """Rebuild the answers of ascending measurements, read in blocks."""
    used = _used(run)
    for block in np.split(rows, np.flatnonzero(np.diff(rows // BLOCK_ROWS)) + 1):
        if block.size == 0:
            continue
        start, stop = int(block[0]), int(block[-1]) + 1
        series = {name: run.rows(name, start, stop) for name in used}
        for row in block.tolist():
            values = {name: values[row - start] for name, values in series.items()}
            choice = run["recommendation"][row]
            yield row, _recommendation(run, values, choice, np.zeros(len(choice), np.int64))


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
    last = int(answered[-1])
    choice = choices[last]
    unchanged = np.logical_and.accumulate(choices[answered][::-1] == choice)
    values = {name: run.row(name, last) for name in _used(run)}
    age = np.where(choice == Choice.NONE, 0, unchanged.sum(axis=0) - 1)
    return _recommendation(run, values, choice, age)


def _rule(run: "Run") -> Rule:
    return rule_of(run.settings.rule, run.settings.threshold)


def _used(run: "Run") -> tuple[str, ...]:
    """Names of the variables that the run's answers rest on."""
    return _USED + _CANDIDATES if _rule(run).needs_candidates else _USED


def _recommendation(
    run: "Run", values: dict[str, Any], choice: NDArray[np.int8], stable_for: NDArray[np.int64]
) -> Recommendation:
    """Rebuild the answer of one measurement from its values of ``_used``."""
    rule = _rule(run)
    evidence = recorded_evidence(SimpleNamespace(**values), run.tensor_names, run.tensor_numel)
    ratio = rule.ratio(evidence)
    return Recommendation(
        rule=rule,
        evidence=evidence,
        low=ratio.low,
        high=ratio.high,
        choice=choice,
        stable_for=stable_for,
        warmup=run.settings.warmup,
    )


def recorded_evidence(
    measurement: Measurement | SimpleNamespace, names: Sequence[str], numel: ArrayLike
) -> Evidence:
    """Gather what a measurement tells the rules.

    Args:
        measurement: the measurement.
        names: of its tensors.
        numel: their sizes.

    Returns:
        The evidence.
    """
    candidates = _candidates(measurement)
    return Evidence(
        iteration=int(measurement.iteration),
        names=names,
        numel=np.asarray(numel, np.int64),
        lipschitz=measurement.tensor_lipschitz,
        lipschitz_upper=measurement.tensor_lipschitz_upper,
        threshold=measurement.tensor_threshold,
        threshold_low=measurement.tensor_threshold_low,
        threshold_high=measurement.tensor_threshold_high,
        curvature=measurement.tensor_curvature,
        slope=measurement.tensor_slope,
        first=candidates[0],
        second=candidates[1],
    )


def _candidates(
    row: Measurement | SimpleNamespace,
) -> tuple[Candidate, Candidate] | tuple[None, None]:
    """The cubics along both next steps; None where they were not measured or not read."""
    if not hasattr(row, "first_descent") or np.isnan([row.first_descent, row.second_descent]).all():
        return None, None
    return (
        _candidate(row.first_slope, row.first_curvature, row.first_descent),
        _candidate(row.second_slope, row.second_curvature, row.second_descent),
    )


def _candidate(slope: Floats, curvature: Floats, descent: Floats) -> Candidate:
    """The cubic along a step from its two lower terms and its sum; see ``schema``."""
    with np.errstate(invalid="ignore"):
        bend = np.where(np.isposinf(descent), np.inf, 6 * (descent + slope) - 3 * curvature)
    return Candidate(slope=slope, curvature=curvature, bend=bend)
