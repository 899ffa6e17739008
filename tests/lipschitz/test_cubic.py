"""The cubic models against plain arithmetic, a scalar minimiser, and the limits of the theory."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from lipprof.lipschitz import (
    elmo_step,
    newton_threshold,
    optimistic_model,
    pessimistic_model,
    regret,
)

moderate = st.floats(0.1, 10)
positive = st.floats(1e-5, 1e5)
signed = st.one_of(positive, positive.map(lambda x: -x), st.just(0.0))
exponents = st.integers(-8, 8)


def eigenspace(slope, curvature, lipschitz):
    numbers = {"slope": slope, "curvature": curvature, "lipschitz": lipschitz}
    return {name: scalar(number) for name, number in numbers.items()}


def scalar(number):
    return torch.tensor(number, dtype=torch.float64)


def cubic(x, slope, curvature, third):
    return -slope * x + curvature * x**2 / 2 + third * x**3 / 6


def rounding(x, slope, curvature, lipschitz):
    """Size of the terms of M, in units of which its last digits are lost."""
    return 1e-14 * cubic(x, -slope, abs(curvature), lipschitz)


@given(x=positive, slope=positive, curvature=signed, lipschitz=positive, share=st.floats(-1, 1))
def test_a_cubic_lies_between_the_models(x, slope, curvature, lipschitz, share):
    loss = cubic(x, slope, curvature, share * lipschitz)
    space, slack = eigenspace(slope, curvature, lipschitz), rounding(x, slope, curvature, lipschitz)
    assert optimistic_model(scalar(x), **space) <= loss + slack
    assert pessimistic_model(scalar(x), **space) >= loss - slack


@given(slope=positive, curvature=signed, lipschitz=positive, factor=st.floats(0, 1e3))
def test_no_other_step_has_a_better_worst_case(slope, curvature, lipschitz, factor):
    step = elmo_step(**eigenspace(slope, curvature, lipschitz)).item()
    best, other = (cubic(x, slope, curvature, lipschitz) for x in (step, factor * step))
    assert step > 0
    assert best <= other + rounding(max(1, factor) * step, slope, curvature, lipschitz)
    assert best <= 0


@given(slope=moderate, curvature=st.floats(-10, 10), lipschitz=moderate)
def test_step_is_where_a_scalar_minimiser_ends(slope, curvature, lipschitz):
    rises_beyond = max(4 * abs(curvature) / lipschitz, 2 * math.sqrt(slope / lipschitz))
    found = minimize_scalar(
        cubic,
        bounds=(0, rises_beyond),
        args=(slope, curvature, lipschitz),
        method="bounded",
        options={"xatol": 1e-9 * rises_beyond},
    )
    step = elmo_step(**eigenspace(slope, curvature, lipschitz)).item()
    assert step == pytest.approx(found.x, rel=1e-4, abs=1e-6 * rises_beyond)


@given(slope=positive, curvature=signed, lipschitz=positive)
def test_best_case_is_at_most_five_times_the_worst(slope, curvature, lipschitz):
    """Lemma C.2."""
    space = eigenspace(slope, curvature, lipschitz)
    step = elmo_step(**space)
    worst, best = pessimistic_model(step, **space), optimistic_model(step, **space)
    assert abs(best) <= 5 * abs(worst) * (1 + 1e-9)


@given(slope=moderate, curvature=st.floats(-10, 10))
def test_limit_of_large_lipschitz(slope, curvature):
    """Thm H.1."""
    space = eigenspace(slope, curvature, 1e14)
    limit = -2 * math.sqrt(2) / 3 * slope**1.5
    worst = pessimistic_model(elmo_step(**space), **space).item()
    assert worst * 1e7 == pytest.approx(limit, rel=1e-4)


@given(slope=moderate, curvature=st.floats(-10, -0.1))
def test_limit_of_small_lipschitz_where_concave(slope, curvature):
    """Thm H.2."""
    space = eigenspace(slope, curvature, 1e-9)
    worst = pessimistic_model(elmo_step(**space), **space).item()
    assert worst * 1e-18 == pytest.approx(-2 / 3 * abs(curvature) ** 3, rel=1e-4)


@given(slope=st.floats(0.5, 5), curvature=st.floats(0.5, 5))
def test_limit_of_small_lipschitz_where_convex(slope, curvature):
    """Thm H.3: the worst case rises above the quadratic's minimum by L(γ/λ)³/6, linear in L."""
    space = eigenspace(slope, curvature, 1e-5)
    newton, quadratic_minimum = slope / curvature, -(slope**2) / (2 * curvature)
    excess = pessimistic_model(elmo_step(**space), **space).item() - quadratic_minimum
    assert excess / 1e-5 == pytest.approx(newton**3 / 6, rel=1e-3)


@pytest.mark.parametrize("lipschitz", [0.0, 1e-200, 1e-13])
@given(slope=moderate, curvature=moderate)
def test_step_becomes_newtons(lipschitz, slope, curvature):
    """Eq. 13."""
    step = elmo_step(**eigenspace(slope, curvature, lipschitz)).item()
    assert step == pytest.approx(slope / curvature, rel=1e-9)


@given(slope=positive, curvature=positive, factor=st.floats(1e-3, 1e3))
def test_newton_ascends_in_the_worst_case_exactly_from_the_threshold_on(slope, curvature, factor):
    """Eq. 8."""
    assume(abs(factor - 1) > 1e-9)
    limit = newton_threshold(slope=scalar(slope), curvature=scalar(curvature)).item()
    space = eigenspace(slope, curvature, factor * limit)
    worst = pessimistic_model(scalar(slope / curvature), **space)
    assert (worst >= 0) == (factor >= 1)


@given(
    slope=moderate,
    curvature=signed,
    lipschitz=moderate,
    share=st.floats(0, 3),
    loss_exponent=exponents,
    parameter_exponent=exponents,
)
def test_units(slope, curvature, lipschitz, share, loss_exponent, parameter_exponent):
    """Loss × c and parameters / s scale γ by cs, λ by cs², L by cs³; regret has no unit."""
    c, s = 10.0**loss_exponent, 10.0**parameter_exponent
    space = eigenspace(slope, curvature, lipschitz)
    scaled = eigenspace(c * s * slope, c * s**2 * curvature, c * s**3 * lipschitz)
    step, scaled_step = elmo_step(**space), elmo_step(**scaled)
    assert scaled_step.item() * s == pytest.approx(step.item(), rel=1e-9)
    given_away = regret(share * step, **space).item()
    assert regret(share * scaled_step, **scaled).item() == pytest.approx(
        given_away, rel=1e-9, abs=1e-9
    )
    limit, scaled_limit = (
        newton_threshold(slope=each["slope"], curvature=each["curvature"]).item()
        for each in (space, scaled)
    )
    assert scaled_limit == pytest.approx(c * s**3 * limit, rel=1e-9, abs=0)


@given(slope=positive, curvature=signed, lipschitz=positive, factor=st.floats(0, 100))
def test_regret_is_zero_at_elmo_and_one_without_a_step(slope, curvature, lipschitz, factor):
    space = eigenspace(slope, curvature, lipschitz)
    step = elmo_step(**space)
    assert regret(step, **space).item() == 0
    assert regret(scalar(0.0), **space).item() == 1
    assert regret(factor * step, **space) >= -1e-9


def at_half(function):
    return lambda **space: function(scalar(0.5), **space)


FUNCTIONS = {
    "pessimistic_model": at_half(pessimistic_model),
    "optimistic_model": at_half(optimistic_model),
    "regret": at_half(regret),
    "elmo_step": elmo_step,
    "newton_threshold": lambda lipschitz, **space: newton_threshold(**space),
}


@pytest.mark.parametrize("curvature", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, -1.0])
@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, "slope") for name in FUNCTIONS]
    + [(name, "lipschitz") for name in FUNCTIONS if name != "newton_threshold"],
)
def test_impossible_numbers_give_nan(name, argument, bad, curvature):
    space = {"slope": 1.0, "curvature": curvature, "lipschitz": 1.0} | {argument: bad}
    assert FUNCTIONS[name](**eigenspace(**space)).isnan()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_unknown_curvature_gives_nan(name):
    assert FUNCTIONS[name](**eigenspace(1.0, math.nan, 1.0)).isnan()


@pytest.mark.parametrize(
    ("slope", "curvature", "lipschitz", "step", "threshold"),
    [
        (0.0, 0.0, 0.0, 0.0, 0.0),
        (0.0, 0.0, 3.0, 0.0, 0.0),
        (0.0, 2.0, 0.0, 0.0, math.inf),
        (0.0, 2.0, 3.0, 0.0, math.inf),
        (0.0, -1.0, 2.0, 1.0, 0.0),
        (0.0, -1.0, 0.0, math.inf, 0.0),
        (1.0, -1.0, 0.0, math.inf, 0.0),
        (1.0, 0.0, 0.0, math.inf, 0.0),
        (1.0, 0.0, 2.0, 1.0, 0.0),
        (1.0, 2.0, 0.0, 0.5, 12.0),
    ],
)
def test_corners(slope, curvature, lipschitz, step, threshold):
    space = eigenspace(slope, curvature, lipschitz)
    assert elmo_step(**space).item() == step
    del space["lipschitz"]
    assert newton_threshold(**space).item() == threshold


@pytest.mark.parametrize("space", [(0.0, 1.0, 1.0), (0.0, 0.0, 1.0), (1.0, -1.0, 0.0)], ids=str)
def test_no_regret_where_elmo_guarantees_nothing_finite(space):
    assert regret(scalar(1.0), **eigenspace(*space)).isnan()
