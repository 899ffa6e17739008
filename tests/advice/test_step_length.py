"""Step-length calibration as numbers: cubics and quadratics whose best step is known."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lipprof.advice import Outcome, StepCubic, StepLength, anchor, verdict
from lipprof.advice.step_length import (
    FASTEST,
    FULL,
    LIMIT,
    POSTPONED,
    RANGE,
    START,
    START_ROOM,
)
from lipprof.lipschitz import elmo_step

sizes = st.floats(0.1, 10)
signed = st.floats(-10, 10)


def quadratic(best, length=1.0):
    """The cubic along a step of some length, where the best length is another."""
    return StepCubic(1.0, 1.0 / best, 0.0).scaled(length)


def calibrated(best, start):
    """Calibrate on a quadratic; the length at every reading, and the end."""
    state = StepLength()
    state.start(start)
    lengths = []
    while state.growing:
        lengths.append(state.length)
        state.observe(quadratic(best, state.length))
        state.advance()
    return state, lengths


@given(sizes, signed, signed, signed)
def test_the_cubic_through_values_and_slopes(slope, curvature, bend, value):
    def f(x):
        return value - slope * x + curvature * x**2 / 2 + bend * x**3 / 6

    def derivative(x):
        return -slope + curvature * x + bend * x**2 / 2

    found = StepCubic.through((f(0), derivative(0)), (f(1), derivative(1)), eps=0.0)
    expected = pytest.approx((slope, curvature, bend), abs=1e-11)
    assert (found.slope, found.curvature, found.bend) == expected


@given(sizes, signed, signed)
def test_room_is_where_the_worst_case_is_least(slope, curvature, bend):
    room = StepCubic(slope, curvature, bend).room
    assume(1 / RANGE < room < RANGE)
    x = torch.tensor(room, dtype=torch.float64) * torch.linspace(0, 3, 3001, dtype=torch.float64)
    worst = -slope * x + curvature * x**2 / 2 + abs(bend) * x**3 / 6
    assert float(x[worst.argmin()]) == pytest.approx(room, rel=1e-2)


@given(sizes, signed, signed)
def test_room_is_elmos_step(slope, curvature, bend):
    numbers = (torch.tensor(x, dtype=torch.float64) for x in (slope, curvature, abs(bend)))
    expected = elmo_step(**dict(zip(("slope", "curvature", "lipschitz"), numbers, strict=True)))
    expected = min(max(float(expected), 1 / RANGE), RANGE)
    assert StepCubic(slope, curvature, bend).room == pytest.approx(expected, rel=1e-6)


@given(sizes, signed, signed, st.floats(1e-3, 1e3), st.floats(0.1, 10))
def test_room_knows_no_units(slope, curvature, bend, loss, length):
    cubic = StepCubic(slope, curvature, bend)
    assume(10 / RANGE < cubic.room < RANGE / 10)
    rescaled = StepCubic(loss * slope, loss * curvature, loss * bend)
    assert rescaled.room == pytest.approx(cubic.room, rel=1e-9)
    assert cubic.scaled(length).room == pytest.approx(cubic.room / length, rel=1e-9)


@pytest.mark.parametrize("slope", [0.0, -1.0, math.nan])
def test_no_room_where_the_loss_does_not_fall(slope):
    assert StepCubic(slope, 1.0, 0.0).room == 1 / RANGE


def test_rounding_makes_no_bend():
    """A quadratic in float32 along steps so short that its values hardly differ."""
    eps = torch.finfo(torch.float32).eps
    weights = torch.linspace(0.5, 2, 999)
    for length in (1e-5, 1e-4, 1e-3):
        x0 = torch.ones(999)
        d = -length * weights
        ends = []
        for x in (x0, x0 + d):
            value = 3 + 0.5 * (weights * x**2).mean()
            ends.append((float(value), float((weights * x / 999).double() @ d.double())))
        assert StepCubic.through(*ends, eps=eps).bend == 0
        assert StepCubic.through(*ends, eps=0.0).bend != 0


@given(st.floats(-6, 3))
def test_the_first_step_is_small_and_has_room(exponent):
    best = 10**exponent
    scale = anchor(lambda scale: quadratic(best, scale))
    assert scale <= START
    assert best / scale >= 0.99 * START_ROOM / 2
    assert scale == START or best / scale < 2 * START_ROOM


def test_the_first_step_is_short_of_what_is_not_finite():
    scale = anchor(lambda scale: quadratic(1e-3, scale) if scale < 1e-2 else None)
    assert 1e-3 / scale >= START_ROOM / 2


def test_there_is_no_first_step_uphill():
    assert anchor(lambda scale: StepCubic(-scale, 1.0, 0.0)) is None


@given(st.floats(-2, 2), st.floats(-3, -1))
def test_growth_ends_at_the_best_length_of_a_quadratic(best, start):
    best, start = 10**best, 10**start
    state, lengths = calibrated(best, min(start, best / 2))
    assert state.outcome is Outcome.FROZEN
    assert best / FULL <= state.length <= best * FASTEST
    steps = [b / a for a, b in zip(lengths, lengths[1:], strict=False)]
    assert all(1 < step <= FASTEST * (1 + 1e-12) for step in steps)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_the_decision_knows_no_units(loss, length):
    plain, scaled = StepLength(), StepLength()
    plain.start(0.1)
    scaled.start(0.1 * length)
    for k in range(40):
        bend = math.sin(k)
        cubic = StepCubic(1.0, 0.1 * k, bend)
        plain.observe(cubic)
        scaled.observe(StepCubic(loss, loss * 0.1 * k, loss * bend))
        plain.advance()
        scaled.advance()
        assert scaled.outcome is plain.outcome
        assert scaled.length == pytest.approx(plain.length * length, rel=1e-9)
    assert not plain.growing


def test_the_cubic_brakes_where_the_quadratic_would_not():
    """Negative curvature: the quadratic sees room without end, the third order does not."""
    state = StepLength()
    state.start(1.0)
    state.observe(StepCubic(1.0, -0.5, 12.0))
    state.advance()
    assert state.outcome is Outcome.FROZEN


def test_it_stops_after_so_many_iterations():
    state = StepLength()
    state.start(1.0)
    for _ in range(LIMIT + 1):
        assert state.growing
        state.observe(StepCubic(1.0, 0.0, 0.0))
        state.advance()
    assert state.outcome is Outcome.LIMITED


def test_a_loss_that_is_not_finite_halves_the_length_and_ends_it():
    state = StepLength()
    state.start(4.0)
    state.observe(None)
    state.advance()
    assert (state.outcome, state.length) == (Outcome.DIVERGED, 2.0)


def test_it_gives_up_where_no_first_step_descends():
    state = StepLength()
    for _ in range(POSTPONED):
        assert state.growing
        state.postpone()
    assert state.outcome is Outcome.FAILED


def test_it_goes_on_where_it_was_saved():
    whole, part = StepLength(), StepLength()
    part.load_state_dict(whole.state_dict())
    for state in (whole, part):
        state.start(0.1)
    for k in range(30):
        cubic = StepCubic(1.0, 0.05 * k, math.cos(k))
        for state in (whole, part):
            state.observe(cubic)
            state.advance()
        fresh = StepLength()
        fresh.load_state_dict(part.state_dict())
        part = fresh
        assert part.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("outcome", "factor", "words"),
    [
        (Outcome.GROWING, 0.1, ["growing", "0.1×"]),
        (Outcome.FROZEN, 12.3, ["too low", "raised 12×"]),
        (Outcome.FROZEN, 0.125, ["too high", "lowered 8×"]),
        (Outcome.FROZEN, 0.6, ["about right", "0.6×"]),
        (Outcome.FROZEN, 1.5, ["about right", "1.5×"]),
        (Outcome.LIMITED, 300.0, ["raised 300×", "room"]),
        (Outcome.DIVERGED, 0.01, ["lowered 100×", "NaN"]),
        (Outcome.FAILED, 1.0, ["failed", "given"]),
    ],
)
def test_the_verdict_says_what_was_done(outcome, factor, words):
    assert all(word in verdict(outcome, factor) for word in words)
