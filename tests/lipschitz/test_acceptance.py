"""The rule of ρ: its thresholds, and what rounding of the losses may do to it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipprof.lipschitz import AcceptanceRule, Verdict

OPPOSITE = {
    Verdict.UNSUCCESSFUL: Verdict.VERY_SUCCESSFUL,
    Verdict.VERY_SUCCESSFUL: Verdict.UNSUCCESSFUL,
}


def judged(descent, *, loss=0.0, predicted=1.0, rounding=0.0):
    return AcceptanceRule().judge(
        loss=loss, trial=loss - descent, predicted=predicted, rounding=rounding
    )


@pytest.mark.parametrize(
    ("descent", "verdict", "factor"),
    [
        (-5.0, Verdict.UNSUCCESSFUL, 2.0),
        (0.0999, Verdict.UNSUCCESSFUL, 2.0),
        (0.1, Verdict.SUCCESSFUL, 1.0),
        (0.9, Verdict.SUCCESSFUL, 1.0),
        (0.9001, Verdict.VERY_SUCCESSFUL, 0.5),
        (7.0, Verdict.VERY_SUCCESSFUL, 0.5),
        (math.inf, Verdict.UNSUCCESSFUL, 2.0),
        (math.nan, Verdict.UNSUCCESSFUL, 2.0),
    ],
)
def test_thresholds(descent, verdict, factor):
    assert judged(descent).verdict is verdict
    assert AcceptanceRule().factor(verdict) == factor
    assert verdict.holds == (verdict in {Verdict.SUCCESSFUL, Verdict.VERY_SUCCESSFUL})


@given(
    ratio=st.floats(-1, 2),
    predicted=st.floats(1e-6, 1e-2),
    noise=st.floats(0, 5),
    sign=st.sampled_from([-0.99, 0.99]),
)
def test_rounding_never_turns_a_verdict_into_its_opposite(ratio, predicted, noise, sign):
    """Not even where both losses are off by all that they may be, in opposite directions."""
    loss, trial, rounding = 1.0, 1.0 - ratio * predicted, noise * predicted / 2
    rule = AcceptanceRule()
    seen = rule.judge(loss=loss, trial=trial, predicted=predicted, rounding=rounding).verdict
    loss, trial = loss * (1 + sign * rounding), trial * (1 - sign * rounding)
    true = rule.judge(loss=loss, trial=trial, predicted=predicted, rounding=0.0).verdict
    assert true is not OPPOSITE.get(seen)


@given(ratio=st.floats(-3, 4), predicted=st.floats(1e-3, 1e3))
def test_exact_losses_are_always_resolved(ratio, predicted):
    trial = judged(ratio * predicted, predicted=predicted)
    assert trial.verdict is not Verdict.UNRESOLVED
    assert trial.ratio == pytest.approx(ratio)


def test_a_descent_below_the_grain_of_the_loss_is_unresolved():
    assert judged(1e-9, loss=1.0, predicted=1e-9, rounding=1e-7).verdict is Verdict.UNRESOLVED


def test_a_rise_far_above_the_grain_is_a_refusal_though_little_was_predicted():
    assert judged(-1e-3, loss=1.0, predicted=1e-9, rounding=1e-7).verdict is Verdict.UNSUCCESSFUL


def test_where_no_descent_is_predicted_there_is_no_ratio():
    trial = judged(1.0, predicted=0.0)
    assert trial.verdict is Verdict.UNRESOLVED
    assert math.isnan(trial.ratio)
