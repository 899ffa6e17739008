"""The cubic models against exact arithmetic, a scalar minimiser, and the limits of the theory."""

import decimal
import math
from decimal import Decimal

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


decades = st.floats(-30, 30).map(lambda exponent: 10**exponent)
any_curvature = st.one_of(decades, decades.map(lambda x: -x), st.just(0.0))


def exact_step(slope, curvature, lipschitz):
    """x* in 400 digits, where the cancellation in eq. 7 does no harm."""
    root = (curvature * curvature + 2 * lipschitz * slope).sqrt()
    return (root - curvature) / lipschitz


@given(slope=decades, curvature=any_curvature, lipschitz=decades)
def test_sixty_decades_are_exact(slope, curvature, lipschitz):
    space = eigenspace(slope, curvature, lipschitz)
    step = elmo_step(**space)
    with decimal.localcontext(prec=400):
        exact = [Decimal(number) for number in (slope, curvature, lipschitz)]
        best = exact_step(*exact)
        loss = float(cubic(best, exact[0], exact[1], exact[2]))
        threshold = float(3 * exact[1] ** 2 / exact[0]) if curvature > 0 else 0.0
    assert step.item() == pytest.approx(float(best), rel=1e-14, abs=0)
    assert pessimistic_model(step, **space).item() == pytest.approx(loss, rel=1e-13, abs=0)
    del space["lipschitz"]
    assert newton_threshold(**space).item() == pytest.approx(threshold, rel=1e-14, abs=0)


@pytest.mark.parametrize("curvature", [1e-25, 1e25, -1e25])
def test_squares_out_of_float32s_range_do_no_harm(curvature):
    space = {name: number.float() for name, number in eigenspace(1e-10, curvature, 1e15).items()}
    step = elmo_step(**space)
    expected = elmo_step(**eigenspace(1e-10, curvature, 1e15))
    torch.testing.assert_close(step.double(), expected, rtol=1e-6, atol=0)
    threshold = newton_threshold(slope=scalar(1e-30).float(), curvature=scalar(1e-25).float())
    assert threshold.item() == pytest.approx(3e-20, rel=1e-6)


ALONG = {  # φ′, φ″, φ, and the largest |φ‴|
    "sine": (math.cos, lambda t: -math.sin(t), math.sin, 1.0),
    "log cosh": (
        math.tanh,
        lambda t: 1 / math.cosh(t) ** 2,
        lambda t: math.log(math.cosh(t)),
        4 / (3 * math.sqrt(3)),
    ),
    "cubic": (lambda t: t**2 - t, lambda t: 2 * t - 1, lambda t: t**3 / 3 - t**2 / 2, 2.0),
    "quadratic": (lambda t: -3 * t, lambda t: -3.0, lambda t: -1.5 * t**2, 0.0),
}


@given(
    at=st.lists(st.floats(-5, 5), min_size=4, max_size=4),
    step=st.lists(st.floats(-5, 5), min_size=4, max_size=4),
    seed=st.integers(0, 9),
)
def test_the_loss_lies_between_the_sums_of_the_models(at, step, seed):
    """Lemma 3.1, for f(θ) = Σ φᵢ(uᵢ·θ): fixed eigenvectors uᵢ, λᵢ = φᵢ″ with known Lᵢ."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    theta, move = (torch.tensor(x, dtype=torch.float64) for x in (at, step))
    here, there = (rows @ theta).tolist(), (rows @ (theta + move)).tolist()
    change = sum(
        phi(b) - phi(a) for (_, _, phi, _), a, b in zip(ALONG.values(), here, there, strict=True)
    )
    slopes = [first(a) for (first, *_), a in zip(ALONG.values(), here, strict=True)]
    curvature = [second(a) for (_, second, *_), a in zip(ALONG.values(), here, strict=True)]
    oriented = torch.stack([-row if s > 0 else row for row, s in zip(rows, slopes, strict=True)])
    model = {
        "slope": torch.tensor(slopes, dtype=torch.float64).abs(),
        "curvature": torch.tensor(curvature, dtype=torch.float64),
        "lipschitz": torch.tensor([space[3] for space in ALONG.values()], dtype=torch.float64),
    }
    x = oriented @ move
    slack = 1e-12 * (1 + pessimistic_model(x, **model).abs().sum().item())
    assert optimistic_model(x, **model).sum().item() <= change + slack
    assert pessimistic_model(x, **model).sum().item() >= change - slack
