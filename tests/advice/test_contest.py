"""Trial periods: the plan, and who goes on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipprof.advice import Choice, ContestPlan, Entry, Losses, TrialOutcome
from lipprof.errors import ConfigError

FIRST, SECOND = Entry(Choice.FIRST), Entry(Choice.SECOND)
CALIBRATED = Entry(Choice.FIRST, True), Entry(Choice.SECOND, True)
FINE = Losses(1.0, 1.0)

losses = st.builds(Losses, st.floats(0.1, 10), st.floats(0.1, 10))


def winner(*both):
    return TrialOutcome(dict(zip((FIRST, SECOND, *CALIBRATED), both, strict=False))).winner


@pytest.mark.parametrize("wrong", [{"start": 0}, {"period": 1}, {"start": 2.5}])
def test_a_plan_without_sense_is_refused(wrong):
    with pytest.raises(ConfigError, match="expected whole numbers"):
        ContestPlan(**wrong)


@given(st.tuples(losses, losses, losses, losses))
def test_the_lowest_loss_at_the_end_or_on_average_wins(all_losses):
    index = np.argmin(np.min(all_losses, axis=1))
    assert winner(*all_losses) == (FIRST, SECOND, *CALIBRATED)[index]


def test_noise_at_the_end_and_an_average_that_lags_do_not_count():
    assert winner(FINE, Losses(1.2, 0.9)) == SECOND
    assert winner(FINE, Losses(0.9, 1.2)) == SECOND
    assert winner(FINE, Losses(1.1, 1.1)) == FIRST
    assert winner(FINE, FINE, FINE) == FIRST, "of equals the one that trained before"


@given(losses, losses, st.sampled_from([1e-6, 1e6]))
def test_the_unit_of_the_loss_does_not_matter(mine, other, scale):
    scaled = [Losses(*(scale * loss for loss in each)) for each in (mine, other)]
    assert winner(*scaled) == winner(mine, other)


@pytest.mark.parametrize(("lead", "wins"), [(0.0, False), (0.05, False), (0.3, True)])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_a_lowered_learning_rate_has_to_lead_by_a_part_of_its_descent(lead, wins, scale):
    """The descent of the lowered one is 1 + lead."""
    entries = dict(zip((FIRST, SECOND, *CALIBRATED), (3.0, 1.0, 4.0, 1.0 - lead), strict=True))
    losses = {entry: Losses(scale * loss, np.inf) for entry, loss in entries.items()}
    outcome = TrialOutcome(losses, before=2.0 * scale, lowered=frozenset(CALIBRATED))
    assert outcome.winner == (CALIBRATED[1] if wins else SECOND)
    raised = TrialOutcome(losses, before=2.0 * scale)
    assert raised.winner == (CALIBRATED[1] if lead else SECOND)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_who_diverged_loses(bad):
    broken = Losses(bad, bad)
    assert winner(FINE, broken) == FIRST
    assert winner(broken, FINE) == SECOND
    assert winner(broken, broken) == FIRST


def test_the_reason_tells_all_losses_and_who_diverged():
    outcome = TrialOutcome({
        FIRST: Losses(2.5, 2.25),
        SECOND: Losses(1.5, 1.25),
        CALIBRATED[1]: Losses(np.inf, np.inf),
    })
    assert outcome.reason == (
        "in a trial, the loss went to 2.5 by the first and 1.5 by the second optimizer, "
        "2.25 and 1.25 at averaged parameters; the second calibrated diverged"
    )
    alone = TrialOutcome({FIRST: Losses(2.5, np.nan), SECOND: Losses(np.inf, np.inf)})
    assert alone.reason == "in a trial, the second diverged"
