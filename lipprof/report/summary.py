"""What a person wants to know first, in sentences: the answer, the surface, how far to trust both.

``summarize`` gathers the facts of one measurement in its run; the sentences are built from nothing
else, so terminal and page say the same.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from lipprof.advice import Choice, Recommendation
from lipprof.record import ENGINES, CalibrationReading, RecordedTrial, Run, Status
from lipprof.report import derived
from lipprof.report.calibration import calibration_sentence
from lipprof.report.formats import duration, number, percent, plural, printable
from lipprof.report.sources import Way, source_sentence, ways
from lipprof.report.trials import trials_sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Facts about a run at one measurement."""

    position: int | None  # of the measurement; None: none succeeded
    unit_kind: str  # what gets an answer; see ``Run``
    iteration: int | None
    first_iteration: int | None
    last_iteration: int | None
    measurements: int
    unconverged: int
    failed: int
    reasons: Counter[str]
    gaps: Counter[str]
    finished: bool
    run_seconds: float
    measuring_seconds: float
    cost_share: float
    matvecs: int
    ways: list[Way]  # to measure that served, in order
    engine: str  # what computed the products
    product_error: float  # relative, of products by differences or in half precision; else 0
    edge_ratio: float  # 1: the optimizer is at its edge of stability; NaN: not measured
    recommendation: Recommendation | None
    sharpness: float  # largest eigenvalue; NaN where no top end was measured
    sharpness_converged: bool
    gradient_descent_limit: float  # 2/lr
    assigned_share: float  # of the parameters that AMOS ran first-order; NaN: not AMOS
    switches: derived.Switches
    optimizer: str
    pairs_assigned: dict[Choice, int]  # eigenpairs by what ELMO's or FOSI's rule chose; {}: no rule
    pair_switches: derived.Switches
    calibration: list[CalibrationReading]
    trials: list[RecordedTrial]

    def share(self, choice: Choice) -> float:
        """Share of all profiled parameters that have this answer; NaN without a recommendation."""
        answer = self.recommendation
        if answer is None:
            return float("nan")
        return float(answer.numel[answer.choice == choice].sum() / answer.numel.sum())


def summarize(run: Run, position: int | None) -> Summary:
    """Gather the facts.

    Args:
        run: the run.
        position: of the measurement to report on; None where there is none.

    Returns:
        The facts.
    """
    status, iteration = run["status"], run["iteration"]
    at = -1 if position is None else position
    known = position is not None
    has_top = known and run.top > 0
    return Summary(
        position=position,
        unit_kind=run.unit_kind,
        iteration=int(iteration[at]) if known else None,
        first_iteration=int(iteration[0]) if len(run) else None,
        last_iteration=int(iteration[-1]) if len(run) else None,
        measurements=len(run),
        unconverged=int((status == Status.UNCONVERGED).sum()),
        failed=int((status == Status.FAILED).sum()),
        reasons=derived.failures(run),
        gaps=derived.gaps(run),
        finished=run.finished,
        run_seconds=run.run_seconds,
        measuring_seconds=float(run["seconds"].sum()),
        cost_share=derived.cost_share(run),
        matvecs=int(run["num_matvecs"].sum()),
        ways=ways(run),
        engine=ENGINES[int(run["engine"][at])] if known else "",
        product_error=float(run["product_error"][at]) if known else np.nan,
        edge_ratio=float(run["edge_ratio"][at]) if known else np.nan,
        recommendation=derived.recommendation(run, at) if known else None,
        sharpness=float(run["eigenvalue"][at, 0]) if has_top else np.nan,
        sharpness_converged=bool(run["converged"][at, 0]) if has_top else False,
        gradient_descent_limit=float(derived.gradient_descent_limit(run)[at]) if known else np.nan,
        assigned_share=float(derived.first_order_share(run, "assigned")[at]) if known else np.nan,
        switches=derived.switches(run),
        optimizer=printable(run.attrs.get("optimizer_class", "the optimizer"), 40),
        pairs_assigned=_counts(run, at) if known else {},
        pair_switches=derived.pair_switches(run),
        calibration=run.calibration,
        trials=run.trials,
    )


def advice_sentence(facts: Summary) -> str:
    """Answer the first question: which optimizer for which share of the parameters."""
    answer = facts.recommendation
    if answer is None:
        return _no_advice(facts.measurements - facts.failed)
    first = int((answer.choice == Choice.FIRST).sum())
    undecided = int((answer.choice == Choice.NONE).sum())
    decided = len(answer.names) - undecided
    share = f"{percent(facts.share(Choice.FIRST))} of the parameters"
    counted = f"{share} ({first:,} of {plural(len(answer.names), facts.unit_kind)})"
    tail, rest = "", "the rest"
    if undecided:
        rest = percent(facts.share(Choice.SECOND))
        without = f"{plural(undecided, facts.unit_kind)}, {percent(facts.share(Choice.NONE))}"
        tail = f" No answer yet for {without} of the parameters."
    every = f"every {facts.unit_kind}"
    if answer.rule.fixed:
        verdict = f"Rule {printable(str(answer.rule), 60)} puts {counted} on the first-order side."
    elif first == 0:
        verdict = f"Use a second-order optimizer for {every}: none asks for a first-order one."
    elif first == decided:
        why = ": curvature changes too fast" if answer.rule.threshold_name else ""
        verdict = f"Use a first-order optimizer for {every}{why}."
    else:
        verdict = f"Use a first-order optimizer for {counted}, a second-order one for {rest}."
    return verdict + tail


def _no_advice(succeeded: int) -> str:
    if succeeded < 2:
        have = plural(succeeded, "successful measurement") if succeeded else "none that succeeded"
        return f"No recommendation yet: it takes two measurements, and this run has {have}."
    return (
        f"No recommendation after {plural(succeeded, 'measurement')}: it takes diagonal_probes > "
        "0, the end of the warm-up, and numbers that noise does not hide."
    )


def stability_sentence(facts: Summary) -> str | None:
    """Say how long the answer has held; None while there is none."""
    answer = facts.recommendation
    if answer is None:
        return None
    ages = answer.stable_for[answer.choice != Choice.NONE]
    if (youngest := int(ages.min())) > 0:
        return f"The answer is unchanged for {plural(youngest, 'measurement')}."
    fresh = plural(int((ages == 0).sum()), facts.unit_kind)
    return f"The answer is fresh: {fresh} got or changed theirs at this measurement."


def surface_sentence(facts: Summary) -> str:
    """Say how sharp the loss is, beside what plain gradient descent would bear."""
    if np.isnan(facts.sharpness):
        return "The largest eigenvalue was not measured."
    mark = "" if facts.sharpness_converged else " (not converged)"
    sentence = f"Sharpness (largest eigenvalue) is {number(facts.sharpness)}{mark}"
    limit = facts.gradient_descent_limit
    if np.isnan(limit):
        return f"{sentence}."
    relation = "above" if facts.sharpness > limit else "below"
    return (
        f"{sentence}, {relation} 2/lr = {number(limit)}, the stability limit of plain gradient "
        "descent at the recorded learning rate."
    )


def edge_sentence(facts: Summary) -> str | None:
    """Say how far the optimizer's own steps are from instability; None where not measured."""
    if np.isnan(facts.edge_ratio):
        return None
    where = "within" if facts.edge_ratio <= 1 else "beyond"
    return (
        f"The optimizer itself, preconditioner and momentum included, is {where} its edge of "
        f"stability: its steps see {percent(facts.edge_ratio)} of the curvature that they bear."
    )


def trust_sentence(facts: Summary) -> str:
    """Say how many measurements hold, and what they cost."""
    if facts.measurements == 0:
        return "Nothing was measured yet."
    flaws = []
    if facts.unconverged:
        flaws.append(f"{facts.unconverged:,} did not converge")
    if facts.failed:
        flaws.append(f"{facts.failed:,} failed")
    if facts.gaps:
        reason, _ = facts.gaps.most_common(1)[0]
        flaws.append(f"{facts.gaps.total():,} lack an estimate ({printable(reason, 100)})")
    flawed = " and ".join(flaws) or "none unconverged or failed"
    by = f" ({facts.engine})" if facts.engine else ""
    if facts.engine == "differences":
        by = " by central differences of gradients"
    if facts.product_error > 0:
        by += f" with an error of {number(facts.product_error)}"
    cost = f"{facts.matvecs:,} Hessian-vector products{by} in {duration(facts.measuring_seconds)}"
    share = "" if np.isnan(facts.cost_share) else f", {percent(facts.cost_share)} of the run's time"
    return f"{plural(facts.measurements, 'measurement')}, {flawed}; {cost}{share}."


def failure_lines(facts: Summary, limit: int = 3) -> list[str]:
    """Say what the measurements failed of, the most frequent reasons first."""
    reasons = facts.reasons.most_common(limit)
    return [f"failed {count:,}x: {printable(reason)}" for reason, count in reasons]


def sentences(facts: Summary) -> list[str]:
    """All of them, the answer first."""
    every = [
        advice_sentence(facts),
        stability_sentence(facts),
        amos_sentence(facts),
        pairs_sentence(facts),
        trials_sentence(facts.trials),
        calibration_sentence(facts.calibration),
        surface_sentence(facts),
        edge_sentence(facts),
        trust_sentence(facts),
        source_sentence(facts.ways),
    ]
    return [sentence for sentence in every if sentence is not None]


def amos_sentence(facts: Summary) -> str | None:
    """Say what AMOS ran; None where the optimizer was another."""
    if np.isnan(facts.assigned_share):
        return None
    return (
        f"AMOS ran {percent(facts.assigned_share)} of the parameters first-order; "
        f"{_told(facts.switches)}."
    )


def pairs_sentence(facts: Summary) -> str | None:
    """Say in which eigenspaces ELMO or FOSI stepped; None where no rule chose."""
    counts = facts.pairs_assigned
    if not counts:
        return None
    second, every = counts[Choice.SECOND], plural(sum(counts.values()), "eigenpair")
    rest = [f"{counts[Choice.FIRST]:,} left to its base"]
    if counts[Choice.NONE]:
        rest.append(f"{counts[Choice.NONE]:,} without an answer")
    return (
        f"Of {every}, {facts.optimizer}'s rule sent {second:,} to the second-order step, "
        f"{', '.join(rest)}; {_told(facts.pair_switches)}."
    )


def _counts(run: Run, position: int) -> dict[Choice, int]:
    chosen = run["pair_assigned"]
    if not chosen.any():
        return {}
    return {choice: int((chosen[position] == choice).sum()) for choice in Choice}


def _told(switches: derived.Switches) -> str:
    when = switches.last_iteration
    last = "" if when is None else f", the last at iteration {when:,}"
    return f"{plural(switches.count, 'switch')}{last}"


def state_of(facts: Summary) -> str:
    """Whether the run ended properly."""
    return "finished" if facts.finished else "not finished: still running, or killed"


def identity(run: Run) -> dict[str, str]:
    """Describe what was measured: label to printable text, unknown attributes left out."""
    labels = {
        "model": "model_class",
        "optimizer": "optimizer_class",
        "device": "device",
        "precision": "precision",
        "loss from": "source",
        "probe": "probe",
    }
    return {k: printable(run.attrs[a]) for k, a in labels.items() if run.attrs.get(a)}
