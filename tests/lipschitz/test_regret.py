"""Regret and deviation against 1 − M(x)/M(x*) in exact arithmetic, and where they do not exist."""

import decimal
import math
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipprof.lipschitz import (
    concave_share,
    elmo_step,
    guaranteed_descent,
    pessimistic_model,
    regret,
    step_deviation,
)
from tests.lipschitz.test_cubic import (
    any_curvature,
    cubic,
    decades,
    eigenspace,
    exact_step,
    positive,
    scalar,
    signed,
)

ratios = st.one_of(st.floats(-10, 10), st.floats(-1e-6, 1e-6).map(lambda x: 1 + x))


@given(slope=decades, curvature=any_curvature, lipschitz=decades, ratio=ratios)
def test_regret_is_one_minus_the_ratio_of_worst_cases(slope, curvature, lipschitz, ratio):
    """Sixty decades, both directions, and near the optimum, where the ratio itself cancels."""
    space = eigenspace(slope, curvature, lipschitz)
    x = ratio * elmo_step(**space)
    with decimal.localcontext(prec=400):
        exact = [Decimal(number) for number in (slope, curvature, lipschitz)]
        best = exact_step(*exact)
        actual = Decimal(x.item())
        third = exact[2] if actual >= 0 else -exact[2]
        expected = 1 - cubic(actual, *exact[:2], third) / cubic(best, *exact)
        deviation = actual - best
    found = regret(x, **space).item()
    rounding = abs(ratio - 1) * 1e-14 + 1e-30
    assert found == pytest.approx(float(expected), rel=1e-13, abs=rounding)
    absolute, relative = step_deviation(x, **space)
    size = 1e-15 * (1 + abs(ratio))
    assert absolute.item() == pytest.approx(float(deviation), rel=0, abs=4 * size * float(best))
    assert relative.item() == pytest.approx(float(deviation / best), rel=0, abs=4 * size)


@given(slope=positive, curvature=signed, lipschitz=positive, factor=st.floats(0, 100))
def test_regret_is_zero_at_elmo_and_one_without_a_step(slope, curvature, lipschitz, factor):
    space = eigenspace(slope, curvature, lipschitz)
    step = elmo_step(**space)
    assert regret(step, **space).item() == 0
    assert regret(scalar(0.0), **space).item() == 1
    assert regret(factor * step, **space) >= 0


@given(slope=positive, curvature=positive, relative=st.floats(-3, 3))
def test_without_lipschitz_it_is_the_papers_quadratic(slope, curvature, relative):
    """ΔΔ′² where L = 0: the share of a quadratic's descent that a wrong learning rate costs."""
    space = eigenspace(slope, curvature, 0.0)
    x = scalar((1 + relative) * slope / curvature)
    assert regret(x, **space).item() == pytest.approx(relative**2, rel=1e-9, abs=1e-12)


@given(slope=positive, lipschitz=positive)
def test_without_curvature_the_cubic_term_counts_as_much_as_it_can_there(slope, lipschitz):
    """λ = 0: δ²(3 + δ)/2, of which the paper's quadratic is 3δ²/2."""
    space = eigenspace(slope, 0.0, lipschitz)
    overshoot = regret(2 * elmo_step(**space), **space).item()
    assert overshoot == pytest.approx(2.0, rel=1e-12)


@given(slope=decades, curvature=any_curvature, lipschitz=decades)
def test_guaranteed_descent_is_minus_the_worst_case(slope, curvature, lipschitz):
    space = eigenspace(slope, curvature, lipschitz)
    worst = pessimistic_model(elmo_step(**space), **space).item()
    assert guaranteed_descent(**space).item() == pytest.approx(-worst, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    "space",
    [(0.0, 1.0, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (0.0, 2.0, 0.0), (1.0, -1.0, 0.0)],
    ids=str,
)
def test_no_regret_where_elmo_guarantees_nothing_finite(space):
    assert regret(scalar(1.0), **eigenspace(*space)).isnan()
    assert step_deviation(scalar(1.0), **eigenspace(*space))[1].isnan()


def test_deviation_from_no_step_is_known_in_absolute_terms():
    assert step_deviation(scalar(1.5), **eigenspace(0.0, 1.0, 1.0))[0].item() == 1.5
    assert step_deviation(scalar(1.5), **eigenspace(1.0, -1.0, 0.0))[0].isnan()


@pytest.mark.parametrize("curvature", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, -1.0])
@pytest.mark.parametrize("argument", ["slope", "lipschitz"])
def test_impossible_numbers_give_nan(argument, bad, curvature):
    space = eigenspace(1.0, curvature, 1.0) | {argument: scalar(bad)}
    absolute, relative = step_deviation(scalar(0.5), **space)
    assert absolute.isnan()
    assert relative.isnan()
    assert guaranteed_descent(**space).isnan()
    assert concave_share(**{name: number[None] for name, number in space.items()}).isnan()


def directions(*spaces):
    columns = torch.tensor(spaces, dtype=torch.float64).T
    return dict(zip(("slope", "curvature", "lipschitz"), columns, strict=True))


@given(spaces=st.lists(st.tuples(positive, signed, positive), min_size=1, max_size=6))
def test_concave_share(spaces):
    descent = [-cubic(elmo_step(**eigenspace(*s)).item(), *s) for s in spaces]
    concave = sum(d for d, (_, curvature, _) in zip(descent, spaces, strict=True) if curvature <= 0)
    share = concave_share(**directions(*spaces)).item()
    assert share == pytest.approx(concave / sum(descent), rel=1e-9)


@pytest.mark.parametrize(
    "unknown", [(math.nan, 1.0, 1.0), (1.0, math.nan, 1.0), (1.0, 1.0, math.nan), (1.0, -1.0, 0.0)]
)
def test_concave_share_of_something_unknown_is_unknown(unknown):
    known = (1.0, -1.0, 1.0)
    assert concave_share(**directions(known)).item() == 1
    assert concave_share(**directions(known, (0.0, 1.0, 1.0))).item() == 1
    assert concave_share(**directions(known, unknown)).isnan()


def test_concave_share_without_any_descent_is_unknown():
    assert concave_share(**directions((0.0, 1.0, 1.0), (0.0, 0.0, 1.0))).isnan()
