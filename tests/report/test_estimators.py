"""L by several estimators: what is recorded, how far they agree, what is marked as noise."""

import math

import numpy as np
import pytest
from rich.console import Console

from lipprof.advice import correlate
from lipprof.lipschitz import EigenArcStatus
from lipprof.record import EIGENARC, Measurement
from lipprof.report import derived, estimators, superiority, tables
from lipprof.report.figures import lipschitz
from lipprof.report.notebook import Plots
from lipprof.report.sections import sections
from lipprof.report.summary import summarize, trust_sentence
from lipprof.settings import Settings

DRIFT = np.array([[1.0, 2.0, 4.0, 8.0, 16.0], [1.0, 2.0, 4.0, 8.0, math.nan]])
FACTOR = np.array([2.0, 2.0, 2.0, 0.5, 0.5])


@pytest.fixture
def run(write_run):
    """Two measurements: exact L is twice the drift at the top, half of it at the bottom."""
    rows = [
        Measurement.blank(
            pairs=5,
            tensors=1,
            iteration=k,
            eigenvalue=np.array([3.0, 2.0, 1.0, -1.0, -2.0]),
            residual=np.full(5, 1e-4),
            converged=np.ones(5, np.int8),
            lipschitz_drift=DRIFT[k],
            lipschitz_along=DRIFT[k] * FACTOR,
            lipschitz_noise=np.array([0.9, 0.1, math.nan, 0.1, 0.1]),
        )
        for k in range(2)
    ]
    chosen = Settings(top=3, bottom=2, lipschitz=("exact", "drift")).to_toml()
    return write_run(names=["weight"], rows=rows, settings=chosen)


def test_agreement_is_the_median_ratio_and_factor(run):
    (found,) = estimators.agreements(run)
    assert (found.first, found.second, found.count) == ("drift", "exact", 7)
    assert found.ratio == pytest.approx(2)  # four of seven that are no bounds
    assert found.factor == pytest.approx(2)


def test_the_gap_to_the_nearest_eigenvalue_stands_beside_exact(write_run):
    """How far a gradient holds: of a missing pair, and of the only one, nothing is known."""
    values = [[3.0, 2.5, math.nan, -1.0, -2.5], [math.nan, 1.0, math.nan, math.nan, math.nan]]
    rows = [
        Measurement.blank(
            pairs=5, tensors=1, iteration=k, eigenvalue=np.array(row), lipschitz_along=np.ones(5)
        )
        for k, row in enumerate(values)
    ]
    run = write_run(names=["weight"], rows=rows)
    expected = [[0.5, 0.5, math.nan, 1.5, 1.5], [math.nan] * 5]
    np.testing.assert_array_equal(derived.gap(run), expected)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(tables.pairs_table(run, 0))
    head, *lines = capture.get().splitlines()
    assert "gap" in head
    assert " 1.5 " in next(line for line in lines if "bottom1" in line)


def test_the_estimator_named_first_serves(run):
    assert estimators.serving(run) == "lipschitz_along"
    positive, negative = derived.lipschitz_by_sign(run)
    np.testing.assert_array_equal(positive.values, [8.0, 8.0])
    np.testing.assert_array_equal(negative.values, [8.0, 4.0])


def test_a_noisy_drift_is_a_bound_and_drawn_hollow(run):
    assert estimators.bounds(run, "lipschitz_drift")[0].tolist() == ["≤", "", "", "", ""]
    assert not (estimators.bounds(run, "lipschitz_along") != "").any()
    console = Console(width=120)
    with console.capture() as capture:
        console.print(tables.pairs_table(run, 1))
    lines = capture.get().splitlines()
    assert "L drift" in lines[0]
    assert "L exact" in lines[0]
    top1 = next(line for line in lines if "top1" in line)
    assert top1.count("≤ 1") == 1
    assert "≤" not in next(line for line in lines if "top2" in line)
    drift = next(trace for trace in lipschitz.estimators_figure(run).data if trace.name == "drift")
    assert set(drift.marker.symbol) == {"circle-open"}
    assert "a bound only" in drift.text[0]


def test_sentences_say_both(run):
    first, second = estimators.agreement_sentences(run)
    assert first == (
        "In the median exact is 2 × drift, and half of 7 cases agree within a factor of 2."
    )
    assert second == "25 % of the drifts are mostly batch noise."


def test_what_eigenarc_did_not_try_out_is_a_bound(write_run):
    expected = {"lowered": "≤", "kept": "", "raised": "", "gave_up": "≥", "unresolved": ""}
    codes = np.array([EIGENARC.index(outcome) for outcome in expected], np.int8)
    row = Measurement.blank(
        pairs=5,
        tensors=1,
        iteration=0,
        lipschitz_eigenarc=np.ones(5),
        eigenarc_outcome=codes,
    )
    run = write_run(names=["weight"], rows=[row])
    assert estimators.bounds(run, "lipschitz_eigenarc")[0].tolist() == list(expected.values())
    assert set(estimators.bounds(run, "lipschitz_drift").flat) == {""}


def test_the_run_file_knows_every_outcome_of_eigenarc():
    assert [status.name.lower() for status in EigenArcStatus] == list(EIGENARC[1:])


@pytest.fixture
def tried(write_run):
    """Twelve measurements whose superiority falls with L along the top pair alone."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(12):
        lipschitz = np.exp(rng.normal(size=5))
        rows.append(
            Measurement.blank(
                pairs=5,
                tensors=2,
                iteration=k,
                eigenvalue=np.array([3.0, -1, -2, -3, -4]) * np.exp(0.1 * rng.normal(size=5)),
                residual=np.full(5, 1e-5),
                converged=np.ones(5, np.int8),
                grad_projection=-np.exp(0.1 * rng.normal(size=5)),
                lipschitz_drift=lipschitz,
                newton_descent=1 - 0.1 * lipschitz,
                gradient_descent=np.full(5, 0.2),
                rotation=0.1 * k,
                principal_angle=rng.uniform(0, 1.5, 5),
                lipschitz_mass=rng.dirichlet(np.ones(2), 5),
                match=np.array([1, 2, 3, 4, 0], np.int8),
                overlap=np.full(5, 0.5),
            )
        )
    return write_run(names=["a", "b"], rows=rows)


def test_superiority_is_judged_over_convex_pairs(tried):
    found = superiority.judge(tried)
    assert found.plain.count == 12
    assert found.plain.r == pytest.approx(-1)
    expected = correlate(
        superiority.superiority(tried)[:, 0],
        tried["lipschitz_drift"][:, 0],
        [tried["eigenvalue"][:, 0], -tried["grad_projection"][:, 0]],
        ranks=True,
    )
    assert found.given_scale == expected
    assert "a small L foretells it here" in superiority.sentence(found)
    traces = superiority.superiority_figure(tried).data
    drawn = sum(np.isfinite(trace.y).sum() for trace in traces)
    assert drawn == 5 * 12


def test_a_run_without_trial_steps_has_nothing_to_judge(run):
    assert superiority.judge(run) is None


def test_every_panel_of_moving_curvature_is_on_the_page(tried):
    drawn = {panel.id: panel.figure for part in sections(tried, 11) for panel in part.panels}
    plots = Plots(tried)
    for name in ("lipschitz", "rotation", "lipschitz_mass", "superiority"):
        assert drawn[name].to_json() == getattr(plots, name)().to_json(), name


def test_what_happened_to_a_pair_is_drawn_hollow_and_told(tried):
    figure = lipschitz.lipschitz_figure(tried)
    told = {trace.text[0] for trace in figure.data if isinstance(trace.text, tuple)}
    assert {f"<br>{words}" for words in lipschitz.EVENTS.values()} <= told


def test_the_widest_angle_is_told_in_degrees(tried):
    figure = lipschitz.rotation_figure(tried)
    top = next(trace for trace in figure.data if trace.name == "largest λ")
    widest = np.degrees(tried["principal_angle"][:, :3].max(axis=1))
    np.testing.assert_allclose(top.y, widest)


def test_an_estimate_that_failed_is_told_with_its_reason(write_run):
    rows = [
        Measurement.blank(pairs=5, tensors=1, iteration=k, reason="exact: no third derivative")
        for k in range(2)
    ]
    facts = summarize(write_run(names=["weight"], rows=rows), 1)
    assert "2 lack an estimate (exact: no third derivative)" in trust_sentence(facts)
