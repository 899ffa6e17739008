"""Against sums written out here, on runs small enough to work by hand."""

import math

import numpy as np
import pytest

from lipprof.errors import RunFileError
from lipprof.record import Measurement, Status
from lipprof.report import derived

NAMES, NUMEL = ["conv1.weight", "wte.weight"], [589_824, 24_960]  # as conftest.gpt_numel has them


def rows(*changes, pairs=5):
    return [
        Measurement.blank(pairs=pairs, tensors=2, iteration=10 * i, **change)
        for i, change in enumerate(changes)
    ]


def failed(reason):
    return dict(status=Status.FAILED, reason=reason)


def test_select_takes_the_last_that_did_not_fail(write_run):
    run = write_run(names=NAMES, rows=rows({}, {}, failed("boom")))
    assert derived.select(run) == 1
    assert derived.select(run, 0) == 0
    assert dict(derived.failures(run)) == {"boom": 1}


@pytest.mark.parametrize(
    ("changes", "iteration", "message"),
    [
        ([], None, "has no measurement yet"),
        ([failed("boom"), failed("boom")], None, r"All 2 measurements in .* failed: boom \(2x\)"),
        ([{}, {}, {}], 12, "no measurement at iteration 12; the nearest are at 0, 10, 20"),
        ([{}, failed("boom")], 10, "at iteration 10 failed: boom"),
    ],
)
def test_select_says_why_there_is_nothing(write_run, changes, iteration, message):
    with pytest.raises(RunFileError, match=message):
        derived.select(write_run(names=NAMES, rows=rows(*changes)), iteration)


def test_lipschitz_by_sign_takes_the_largest_of_either_sign(write_run):
    first = dict(
        eigenvalue=np.array([3.0, 2.0, 0.0, -1.0, -2.0]),
        lipschitz_drift=np.array([5.0, 7.0, 1.0, math.nan, 0.5]),
        converged=np.array([1, 0, 1, 1, 1], np.int8),
    )
    run = write_run(names=NAMES, rows=rows(first, {}))
    positive, negative = derived.lipschitz_by_sign(run)
    np.testing.assert_array_equal(positive.values, [7.0, math.nan])
    np.testing.assert_array_equal(negative.values, [1.0, math.nan])
    assert not positive.converged[0], "the pair that holds the maximum did not converge"
    assert negative.converged[0]


def test_relative_residual_is_over_the_extreme_of_the_same_end(write_run):
    change = dict(
        eigenvalue=np.array([4.0, 2.0, 1.0, -1.0, -8.0]),
        residual=np.array([0.4, 0.4, 0.4, 0.8, 1.6]),
    )
    run = write_run(names=NAMES, rows=rows(change))
    np.testing.assert_allclose(derived.relative_residual(run), [[0.1, 0.1, 0.1, 0.1, 0.2]])


def test_first_order_share_counts_parameters_not_tensors(write_run):
    choices = ([0, 0], [1, 2], [1, 1], [2, 2], [0, 1])
    run = write_run(
        names=NAMES, rows=rows(*(dict(recommendation=np.array(c, np.int8)) for c in choices))
    )
    share = NUMEL[0] / sum(NUMEL)
    np.testing.assert_allclose(derived.first_order_share(run), [math.nan, share, 1, 0, 1])


def test_switches_are_counted_across_failures(write_run):
    assigned = ([0, 0], [1, 2], None, [2, 2], [2, 1], [2, 1])
    changes = [failed("x") if a is None else dict(assigned=np.array(a, np.int8)) for a in assigned]
    run = write_run(names=NAMES, rows=rows(*changes))
    assert derived.switches(run) == derived.Switches(count=2, last_iteration=40)


def test_gradient_descent_limit_is_two_over_the_rate(write_run):
    run = write_run(names=NAMES, rows=rows({"learning_rate": 0.1}, {"learning_rate": 0.0}, {}))
    np.testing.assert_allclose(derived.gradient_descent_limit(run), [20, math.nan, math.nan])


def test_a_choice_that_does_not_exist_is_damage(write_run):
    bad = dict(assigned=np.array([1, 7], np.int8), recommendation=np.array([1, 1], np.int8))
    with pytest.raises(RunFileError, match="`assigned` has codes other than 0 to 2"):
        derived.recommendation(write_run(names=NAMES, rows=rows(bad)), 0)
