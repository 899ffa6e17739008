"""L by several estimators: what is recorded, how far they agree, what is marked as noise."""

import math

import numpy as np
import pytest
from rich.console import Console

from lipprof.record import Measurement
from lipprof.report import derived, estimators, figures, tables
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
    assert (found.first, found.second, found.count) == ("drift", "exact", 9)
    assert found.ratio == pytest.approx(2)  # six of nine
    assert found.factor == pytest.approx(2)


def test_the_estimator_named_first_serves(run):
    assert estimators.serving(run) == "lipschitz_along"
    positive, negative = derived.lipschitz_by_sign(run)
    np.testing.assert_array_equal(positive.values, [8.0, 8.0])
    np.testing.assert_array_equal(negative.values, [8.0, 4.0])


def test_a_noisy_drift_is_a_bound_and_drawn_hollow(run):
    noisy = estimators.mostly_noise(run, "lipschitz_drift")
    np.testing.assert_array_equal(noisy[0], [True, False, False, False, False])
    assert not estimators.mostly_noise(run, "lipschitz_along").any()
    console = Console(width=120)
    with console.capture() as capture:
        console.print(tables.pairs_table(run, 1))
    lines = capture.get().splitlines()
    assert "L drift" in lines[0]
    assert "L exact" in lines[0]
    top1 = next(line for line in lines if "top1" in line)
    assert top1.count("≤ 1") == 1
    assert "≤" not in next(line for line in lines if "top2" in line)
    drift = next(trace for trace in figures.estimators_figure(run).data if trace.name == "drift")
    assert set(drift.marker.symbol) == {"circle-open"}
    assert "batch noise" in drift.text[0]


def test_sentences_say_both(run):
    first, second = estimators.agreement_sentences(run)
    assert first == (
        "exact is 2 times drift in the median, and within a factor of 2 of it in half of 9 cases."
    )
    assert second == "25 % of the drifts are mostly batch noise."
