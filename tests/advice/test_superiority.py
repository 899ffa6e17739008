"""Correlations against scipy's, the textbook's recursion, and data of known dependence."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lipprof.advice import correlate, trial_steps
from lipprof.errors import ShapeError


def series(*, count=40, seed=0):
    """Superiority that falls with log L, and two controls that move with both."""
    rng = np.random.default_rng(seed)
    control, other = rng.normal(size=(2, count))
    log_lipschitz = control + 0.5 * other + rng.normal(size=count)
    gain = -0.4 * log_lipschitz + control + rng.normal(size=count)
    return gain, np.exp(log_lipschitz), control, other


def recursive(x, y, control, *others):
    """Partial correlation by the textbook's recursion over its controls."""
    correlation = recursive if others else lambda a, b: stats.pearsonr(a, b).statistic
    xy, xc, yc = (correlation(*two, *others) for two in [(x, y), (x, control), (y, control)])
    return (xy - xc * yc) / math.sqrt((1 - xc**2) * (1 - yc**2))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("log_lipschitz", [False, True])
def test_without_controls_it_is_scipys(seed, log_lipschitz):
    gain, lipschitz, *_ = series(seed=seed)
    found = correlate(gain, lipschitz, log_lipschitz=log_lipschitz)
    expected = stats.pearsonr(gain, np.log(lipschitz) if log_lipschitz else lipschitz)
    assert (found.r, found.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)
    ranked = correlate(gain, lipschitz, log_lipschitz=log_lipschitz, ranks=True)
    expected = stats.spearmanr(gain, lipschitz)
    assert (ranked.r, ranked.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("used", [1, 2])
def test_partial_correlation_obeys_the_recursion(seed, used):
    gain, lipschitz, *controls = series(seed=seed)
    controls = controls[:used]
    logarithm = np.log(lipschitz)
    assert correlate(gain, logarithm, controls).r == pytest.approx(
        recursive(gain, logarithm, *controls), rel=1e-9
    )
    ranked = [stats.rankdata(each) for each in (gain, lipschitz, *controls)]
    assert correlate(gain, lipschitz, controls, ranks=True).r == pytest.approx(
        recursive(*ranked), rel=1e-9
    )


def test_partial_p_value_is_that_of_the_regression_coefficient():
    gain, lipschitz, *controls = series(count=12)
    design = np.stack([np.log(lipschitz), *controls, np.ones(12)], axis=1)
    coefficients, residual, *_ = np.linalg.lstsq(design, gain, rcond=None)
    covariance = residual[0] / (12 - 4) * np.linalg.inv(design.T @ design)
    t = coefficients[0] / math.sqrt(covariance[0, 0])
    found = correlate(gain, lipschitz, controls, log_lipschitz=True)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), 12 - 4), rel=1e-9)


def test_p_values_are_uniform_without_a_dependence():
    """... other than through the controls, which make Pearson's r significant."""
    partial, plain = [], []
    rng = np.random.default_rng(0)
    for _ in range(1000):
        control = rng.normal(size=15)
        gain, lipschitz = control + 0.5 * rng.normal(size=(2, 15))
        partial.append(correlate(gain, lipschitz, [control]).p)
        plain.append(correlate(gain, lipschitz).p)
    assert stats.kstest(partial, "uniform").pvalue > 0.01
    assert np.mean(np.array(plain) < 0.05) > 0.9


@given(
    scale=st.sampled_from([1e-200, 1e-30, 1.0, 1e30, 1e200]),
    offset=st.sampled_from([0.0, 1.0, 1e3]),
    repeated=st.booleans(),
)
def test_units_offsets_and_repeated_controls_change_nothing(scale, offset, repeated):
    gain, lipschitz, *controls = series()
    expected = correlate(gain, lipschitz, controls)
    again = [*controls, controls[0] - 2 * controls[1]] if repeated else controls
    found = correlate(gain + offset, scale * lipschitz, [scale * each for each in again])
    assert (found.r, found.p) == pytest.approx((expected.r, expected.p), rel=1e-6)


def test_unknown_numbers_are_left_out_and_counted():
    gain, lipschitz, control, _ = series(count=12)
    expected = correlate(gain[4:], lipschitz[4:], [control[4:]], log_lipschitz=True)
    gain[0], lipschitz[1], lipschitz[2], control[3] = math.nan, math.inf, 0.0, -math.inf
    found = correlate(gain, lipschitz, [control], log_lipschitz=True)
    assert found == expected
    assert (found.count, found.missing) == (8, 0)


@pytest.mark.parametrize(("count", "missing"), [(0, 5), (3, 2), (4, 1), (5, 0)])
def test_too_few_samples(count, missing):
    gain, lipschitz, control, _ = series(count=count)
    found = correlate(gain, lipschitz, [control])
    assert (found.count, found.missing) == (count, missing)
    assert math.isnan(found.r) == math.isnan(found.p) == (missing > 0)


def test_what_is_constant_or_explained_has_no_correlation():
    gain, lipschitz, control, other = series()
    constant = np.full(40, 0.1)
    for found in (
        correlate(constant, lipschitz),
        correlate(gain, constant),
        correlate(gain, 3 * control - other, [control, other]),
    ):
        assert math.isnan(found.r)
        assert math.isnan(found.p)
    assert correlate(gain, lipschitz, [constant]) == correlate(gain, lipschitz)


def test_perfect_dependence():
    x = np.arange(1.0, 9.0)
    assert correlate(-(x**3), x, ranks=True).r == pytest.approx(-1, abs=1e-15)
    assert correlate(-2 * x, x).p == pytest.approx(0, abs=1e-30)


def test_series_of_different_length_are_refused():
    with pytest.raises(ShapeError, match=r"\[5, 5, 4\]"):
        correlate(np.ones(5), np.ones(5), [np.ones(4)])


def test_trial_steps_on_a_quadratic():
    slope, curvature = np.array([2.0, 2.0, 2.0]), np.array([4.0, -4.0, 0.0])
    newton, sgd = trial_steps(slope, curvature, lr=0.1)
    np.testing.assert_array_equal(newton, [0.5, 0.5, math.nan])
    np.testing.assert_array_equal(sgd, [0.2, 0.2, 0.2])
    loss = [-slope * x + curvature * x**2 / 2 for x in (newton, sgd)]
    np.testing.assert_allclose(loss[1] - loss[0], [0.5 - 0.32, 1.5 - 0.48, math.nan])
