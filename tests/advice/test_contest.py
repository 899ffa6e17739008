"""Trial periods: the plan, and who goes on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipprof.advice import Choice, ContestPlan, Losses, judge
from lipprof.errors import ConfigError

losses = st.builds(Losses, st.floats(0.1, 10), st.floats(0.1, 10))
sides = st.sampled_from([Choice.FIRST, Choice.SECOND])


def winner(first, second, incumbent, before=np.nan):
    decision = judge(
        7, ["a", "b"], [3, 4], first=first, second=second, incumbent=incumbent, before=before
    )
    assert len(set(decision.choice.tolist())) == 1
    return Choice(int(decision.choice[0]))


def test_later_trials_begin_at_a_multiple_of_the_end_of_the_one_before():
    plan = ContestPlan(first=10, period=5, growth=2.5)
    assert plan.after(15) == 38
    assert plan.after(43) == 108
    assert ContestPlan().after(60) == np.inf


@pytest.mark.parametrize(
    "wrong",
    [
        {"first": -1},
        {"period": 1},
        {"growth": 0.9},
        {"growth": float("nan")},
        {"first": 2.5},
    ],
)
def test_a_plan_without_sense_is_refused(wrong):
    with pytest.raises(ConfigError, match="expected whole numbers"):
        ContestPlan(**wrong)


@given(losses, losses, sides)
def test_the_other_arm_goes_on_only_if_ahead_by_both_losses(first, second, incumbent):
    mine, other = (first, second) if incumbent is Choice.FIRST else (second, first)
    changes = other.end < mine.end and other.average < mine.average
    assert (winner(first, second, incumbent) is not incumbent) == changes


@pytest.mark.parametrize(
    ("end", "average", "changes"),
    [(0.89, 0.89, True), (0.91, 0.89, False), (0.89, 0.91, False), (0.91, 0.91, False)],
)
def test_a_lead_has_to_be_a_tenth_of_the_descent(end, average, changes):
    side = winner(Losses(1.0, 1.0), Losses(end, average), Choice.FIRST, before=2.0)
    assert (side is Choice.SECOND) == changes


def test_where_nothing_descended_any_lead_will_do():
    fine, other = Losses(1.0, 1.0), Losses(0.99, 0.99)
    assert winner(fine, other, Choice.FIRST, before=0.5) is Choice.SECOND


@given(losses, losses, sides, st.sampled_from([2.0**-20, 2.0**20]))
def test_decisions_do_not_depend_on_the_unit_of_the_loss(first, second, incumbent, scale):
    scaled = [Losses(*(scale * loss for loss in arm)) for arm in (first, second)]
    assert winner(*scaled, incumbent, 8 * scale) is winner(first, second, incumbent, 8.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_arm_without_a_finite_loss_loses(bad):
    broken, fine = Losses(bad, bad), Losses(1.0, 1.0)
    assert winner(broken, fine, Choice.FIRST) is Choice.SECOND
    assert winner(fine, broken, Choice.FIRST) is Choice.FIRST
    assert winner(broken, broken, Choice.SECOND) is Choice.SECOND


def test_the_reason_tells_all_four_losses():
    decision = judge(
        7, ["a"], [3], first=Losses(2.5, 2.25), second=Losses(1.5, 1.25), incumbent=Choice.FIRST
    )
    assert all(number in decision.reason(0) for number in ("2.5 ", "2.25 ", "1.5 ", "1.25 "))
