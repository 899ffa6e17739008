"""What follows from a run's variables without being one: selection, extremes, shares, changes.

Every view (terminal, JSON, page) takes these numbers from here, so that they cannot disagree.
Shapes: M measurements, P pairs, T tensors.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipprof.advice import Choice, Recommendation
from lipprof.errors import RunFileError
from lipprof.record import EDGE_TOL, Run, Status, assignment_changes, pair_assignment_changes
from lipprof.report import estimators

Floats = NDArray[np.float64]
UNCERTAIN = "not converged, or a bound only"


@dataclass(frozen=True, slots=True)
class Series:
    """One number per measurement, (M,), and whether it rests on converged pairs alone."""

    values: Floats
    converged: NDArray[np.bool_]
    flaw: str = "not converged"  # of the others


@dataclass(frozen=True, slots=True)
class Switches:
    """How often AMOS moved a tensor, or ELMO or FOSI an eigenpair, to the other side."""

    count: int
    last_iteration: int | None


def usable(run: Run) -> NDArray[np.intp]:
    """Positions of the measurements that did not fail, in the order of the file."""
    return np.flatnonzero(run["status"] != Status.FAILED)


def latest(run: Run) -> int | None:
    """Position of the last measurement that did not fail; None: there is none."""
    good = usable(run)
    return int(good[-1]) if good.size else None


def failures(run: Run) -> Counter[str]:
    """Count the failed measurements by reason."""
    reasons = run["reason"][run["status"] == Status.FAILED]
    return Counter(reason or "no reason recorded" for reason in reasons)


def gaps(run: Run) -> Counter[str]:
    """Count the measurements that lack an estimate, by reason."""
    reasons = run["reason"][run["status"] != Status.FAILED]
    return Counter(reason for reason in reasons if reason)


def select(run: Run, iteration: int | None = None) -> int:
    """Find the measurement to report on.

    Args:
        run: the run.
        iteration: completed optimizer steps; None: the last measurement that did not fail.

    Returns:
        Its position in the file.

    Raises:
        RunFileError: nothing was measured, or not at that iteration, or it failed.
    """
    if len(run) == 0:
        raise RunFileError(f"{run.path} has no measurement yet: the run wrote only its header.")
    if iteration is None:
        last = latest(run)
        if last is None:
            reasons = "; ".join(f"{reason} ({n}x)" for reason, n in failures(run).most_common(3))
            raise RunFileError(f"All {len(run)} measurements in {run.path} failed: {reasons}.")
        return last
    found = np.flatnonzero(run["iteration"] == iteration)
    if found.size == 0:
        recorded = run["iteration"]
        near = np.unique(recorded[np.argsort(np.abs(recorded - iteration))[:3]])
        raise RunFileError(
            f"{run.path} has no measurement at iteration {iteration}; the nearest are at "
            f"{', '.join(map(str, near))}."
        )
    position = int(found[-1])
    if position not in usable(run):
        reason = run["reason"][position] or "no reason recorded"
        raise RunFileError(f"The measurement at iteration {iteration} failed: {reason}.")
    return position


def recommendation(run: Run, position: int) -> Recommendation | None:
    """Return the recorded answer at a measurement.

    Args:
        run: the run.
        position: of the measurement in the file.

    Returns:
        The recommendation; None while no tensor has one.

    Raises:
        RunFileError: the file has a choice that does not exist.
    """
    for name in ("recommendation", "assigned", "pair_assigned"):
        if not np.isin(run[name], list(Choice)).all():
            raise RunFileError(f"{run.path} is damaged: `{name}` has codes other than 0 to 2.")
    choices = run["recommendation"][: position + 1]
    return run.recommendation(position) if (choices != Choice.NONE).any() else None


def pair_series(run: Run, name: str, pair: int) -> Series:
    """One pair's series of a variable on (measurement, pair)."""
    return Series(run[name][:, pair], run["converged"][:, pair] == 1)


def extreme_pairs(run: Run) -> list[int]:
    """The most extreme pair at each end that the run has."""
    last = len(run.pair_labels) - 1
    return [pair for pair, count in ((0, run.top), (last, run.bottom)) if count]


def lipschitz_series(run: Run, name: str, pair: int) -> Series:
    """One pair's L by one estimator; a bound counts as not converged."""
    certain = (run["converged"] == 1) & (estimators.bounds(run, name) == "")
    return Series(run[name][:, pair], certain[:, pair], UNCERTAIN)


def lipschitz_by_sign(run: Run) -> tuple[Series, Series]:
    """L⁺ and L⁻: the largest L over the pairs with λ > 0 and over those with λ ≤ 0 (Notation 10).

    Returns:
        Both, by the estimator that serves; NaN where no such pair has an estimate.
    """
    eigenvalue = run["eigenvalue"]
    return _largest_lipschitz(run, eigenvalue > 0), _largest_lipschitz(run, eigenvalue <= 0)


def _largest_lipschitz(run: Run, among: NDArray[np.bool_]) -> Series:
    name = estimators.serving(run)
    known = among & ~np.isnan(run[name])
    candidates = np.where(known, run[name], -np.inf)
    largest = candidates.max(axis=1, initial=-np.inf)
    holds_it = known & (candidates == largest[:, None])
    certain = (run["converged"] == 1) & (estimators.bounds(run, name) == "")
    values = np.where(known.any(axis=1), largest, np.nan)
    return Series(values, (holds_it & certain).any(axis=1), UNCERTAIN)


def relative_residual(run: Run) -> Floats:
    """Residual over the extreme eigenvalue of the same end, the ratio that ``tol`` bounds, (M, P).

    Returns:
        NaN for a pair that is missing.
    """
    eigenvalue = np.abs(run["eigenvalue"])
    scale = np.empty_like(eigenvalue)
    if eigenvalue.shape[1]:
        scale[:, : run.top] = eigenvalue[:, :1]
        scale[:, run.top :] = eigenvalue[:, -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        return run["residual"] / scale


def gap(run: Run) -> Floats:
    """How far the nearest other eigenvalue of the measurement is, (M, P); loss/param².

    The gradient of an eigenvalue, and with it the exact estimate of L, holds only as far as the two
    stay apart.  Eigenvalues that were not computed may be nearer.

    Returns:
        NaN for a pair that is missing or the only one.
    """
    eigenvalue = run["eigenvalue"]
    apart = np.abs(eigenvalue[:, :, None] - eigenvalue[:, None, :])
    apart[:, *np.diag_indices(eigenvalue.shape[1])] = np.nan
    nearest = np.where(np.isnan(apart), np.inf, apart).min(axis=2, initial=np.inf)
    return np.where(np.isfinite(nearest), nearest, np.nan)


def first_order_share(run: Run, name: str = "recommendation") -> Floats:
    """Share of the parameters on the first-order side, (M,); those without an answer left out.

    Args:
        run: the run.
        name: ``recommendation`` or ``assigned``.

    Returns:
        NaN while no tensor has an answer.
    """
    decided = (run[name] != Choice.NONE) @ run.tensor_numel
    with np.errstate(invalid="ignore"):
        return ((run[name] == Choice.FIRST) @ run.tensor_numel) / np.where(decided, decided, np.nan)


@dataclass(frozen=True, slots=True)
class Foreseen:
    """Changes of the loss foreseen along AMOS's next step, (M,); minus: it falls."""

    first: Floats  # everything on the first side
    second: Floats  # all that may leave it on the second
    ran: Floats  # every tensor on the side that it was on: shares added up


def foreseen_changes(run: Run) -> Foreseen | None:
    """Add up what was foreseen per tensor.

    A tensor that may not leave the first side counts with its share of the first step, and terms
    between tensors on different sides count as measured with both on one.

    Args:
        run: the run.

    Returns:
        The changes; None where no next step was measured.
    """
    first, second = run["first_descent"], run["second_descent"]
    if np.isnan(first).all():
        return None
    second = np.where(np.isnan(second), first, second)
    ran = np.where(run["assigned"] == Choice.SECOND, second, first)
    return Foreseen(first.sum(axis=1), second.sum(axis=1), ran.sum(axis=1))


def newton_step(run: Run) -> Floats:
    """Length of Newton's step along every pair, γ/|λ|, (M, P); param."""
    curvature = np.abs(run["eigenvalue"])
    return np.abs(run["grad_projection"]) / np.where(curvature > 0, curvature, np.nan)


def gradient_descent_limit(run: Run) -> Floats:
    """2/lr, the curvature above which gradient descent with this learning rate diverges, (M,)."""
    rate = run["learning_rate"]
    return 2 / np.where(rate > 0, rate, np.nan)


def switches(run: Run) -> Switches:
    """Count AMOS's switches between consecutive measurements that did not fail."""
    return _counted(run, assignment_changes(run)[0])


def pair_switches(run: Run) -> Switches:
    """Count how often an eigenpair was given the other side by ELMO's or FOSI's rule."""
    return _counted(run, pair_assignment_changes(run)[0])


def _counted(run: Run, rows: NDArray[np.intp]) -> Switches:
    return Switches(len(rows), int(run["iteration"][rows[-1]]) if rows.size else None)


def cost_share(run: Run) -> float:
    """Share of the run's wall time that the measurements took; NaN where it is not known."""
    return float(run["seconds"].sum() / run.run_seconds) if run.run_seconds > 0 else float("nan")


def key_series(run: Run) -> dict[str, Series]:
    """The series that a person follows, by their names.

    Args:
        run: the run.

    Returns:
        Loss, gradient norm, extreme eigenvalues, L⁺, L⁻, edge ratio where it was measured, and
        first-order share; of an AMOS whose next steps were measured, the changes of the loss.
    """
    certain = np.ones(len(run), bool)
    every = {
        "loss": Series(run["loss"], certain),
        "gradient norm": Series(run["grad_norm"], certain),
    }
    if run.top:
        every["λ largest"] = pair_series(run, "eigenvalue", 0)
    if run.bottom:
        every["λ smallest"] = pair_series(run, "eigenvalue", len(run.pair_labels) - 1)
    every["L⁺ (λ > 0)"], every["L⁻ (λ ≤ 0)"] = lipschitz_by_sign(run)
    if np.isfinite(run["edge_ratio"]).any():
        every["edge of stability"] = edge_series(run)
    if (foreseen := foreseen_changes(run)) is not None:
        every["change by first"] = Series(foreseen.first, certain)
        every["change by second"] = Series(foreseen.second, certain)
        every["change achieved"] = Series(run["achieved_descent"], certain)
    every["first-order share"] = Series(first_order_share(run), certain)
    return every


def edge_series(run: Run) -> Series:
    """The optimizer's top eigenvalue over its edge of stability; certain within ``EDGE_TOL``."""
    ratio = run["edge_ratio"]
    return Series(ratio, run["edge_residual"] <= EDGE_TOL * np.abs(ratio))
