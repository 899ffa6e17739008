"""Each rule against its definition, and what all rules promise: no unit of loss, no order."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipprof.advice import (
    Advisor,
    Candidate,
    Choice,
    Depth,
    Descent,
    Evidence,
    FirstThenSecond,
    Inverted,
    NewtonSafe,
    Quantile,
    Random,
    Static,
    Threshold,
)
from lipprof.errors import ConfigError

NONE, FIRST, SECOND = Choice.NONE, Choice.FIRST, Choice.SECOND
NAN, INF = math.nan, math.inf
RULES = [
    NewtonSafe(),
    Quantile(0.3),
    Quantile(0.6, side="low", of="units"),
    Random(0.4, seed=3),
    Static(("u1", "u[34]")),
    FirstThenSecond(7),
    Inverted(NewtonSafe()),
    Inverted(Quantile()),
]


def evidence(lipschitz, upper=None, *, limit=1.0, numel=None, iteration=0, names=None):
    count = len(lipschitz)
    exact = Evidence.exact(
        iteration,
        names or [f"u{i}" for i in range(count)],
        [1] * count if numel is None else numel,
        lipschitz=lipschitz,
        threshold=np.full(count, limit),
        curvature=np.ones(count),
        slope=np.ones(count),
    )
    upper = exact.lipschitz if upper is None else np.asarray(upper, np.float64)
    return dataclasses.replace(exact, lipschitz_upper=upper)


def decide(rule, seen):
    return Advisor(seen.names, rule=rule).advise(seen).choice.tolist()


edge = st.sampled_from([0.0, INF, NAN, 5e-324, 1.0, 1 - 2**-53, 1.7e308])
number = st.one_of(edge, st.floats(0, allow_nan=False))


@given(lipschitz=number, limit=number)
def test_the_ratio_decides_as_the_comparison_does(lipschitz, limit):
    for rule, threshold in ((NewtonSafe(), limit), (Threshold(1.0), 1.0)):
        ratio = rule.ratio(evidence([lipschitz], limit=limit))
        assert (ratio.low[0] >= 1) == (lipschitz >= threshold)
        assert (ratio.high[0] < 1) == (lipschitz < threshold)
        assert ratio.low[0] == ratio.high[0] or math.isnan(lipschitz) or math.isnan(threshold)


# --- quantile ------------------------------------------------------------------------------------

units = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), min_size=1, max_size=8)


def belongs(values, weights, share, i):
    """By definition: half of what equals i, i included, counts as above it."""
    above = sum(w for v, w in zip(values, weights, strict=True) if v > values[i])
    equal = sum(w for v, w in zip(values, weights, strict=True) if v == values[i])
    return above + equal / 2 <= share * sum(weights)


@given(units=units, share=st.sampled_from([0, 0.1, 0.25, 0.5, 0.75, 1]), side=st.booleans())
def test_quantile_takes_the_top_share_and_keeps_equal_units_together(units, share, side):
    values, weights = zip(*units, strict=True)
    rule = Quantile(share, side="high" if side else "low")
    ranked = values if side else [-v for v in values]
    expected = [FIRST if belongs(ranked, weights, share, i) else SECOND for i in range(len(values))]
    assert decide(rule, evidence(values, numel=weights)) == expected
    taken = sum(w for c, w in zip(expected, weights, strict=True) if c is FIRST)
    groups = [sum(w for v, w in units if v == value) for value in set(values)]
    assert abs(taken - share * sum(weights)) <= max(groups) / 2


@given(
    bounds=st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=5
    ),
    share=st.sampled_from([0.2, 0.5, 0.7]),
)
def test_quantile_decides_what_all_numbers_within_the_bounds_agree_on(bounds, share):
    low, width, weights = (list(column) for column in zip(*bounds, strict=True))
    high = [a + b for a, b in zip(low, width, strict=True)]
    corners = list(itertools.product(*zip(low, high, strict=True)))
    expected = []
    for i in range(len(low)):
        answers = {belongs(corner, weights, share, i) for corner in corners}
        expected.append({(True,): FIRST, (False,): SECOND}.get(tuple(answers), NONE))
    assert decide(Quantile(share), evidence(low, high, numel=weights)) == expected


def test_quantile_leaves_out_what_is_not_known():
    seen = evidence([NAN, 3.0, 2.0, 1.0], numel=[1000, 1, 1, 1])
    assert decide(Quantile(0.3), seen) == [NONE, FIRST, SECOND, SECOND]
    assert decide(Quantile(), evidence([NAN, NAN])) == [NONE, NONE]


def test_the_hysteresis_of_quantile_is_in_odds_of_the_position():
    """Of 100 equal units, one moves through the ranks; 2 x the odds of 0.3 are at 0.4615."""
    advisor = Advisor([f"u{i}" for i in range(100)], rule=Quantile(0.3), hysteresis=2, dwell=1)
    others = np.arange(99.0)

    def answer(above):
        moving = np.insert(others, 0, 98 - above + 0.5)
        return Choice(int(advisor.advise(evidence(moving)).choice[0]))

    assert [answer(k) for k in (29, 30, 45, 46, 30, 18, 17)] == [
        FIRST, FIRST, FIRST, SECOND, SECOND, SECOND, FIRST,
    ]  # fmt: skip


# --- descent -------------------------------------------------------------------------------------


def steps(first, second):
    """Evidence of (slope, curvature, bend) along both next steps, one pair a unit."""
    names = [f"u{i}" for i in range(len(first))]
    both = {}
    for side, cubics in (("first", first), ("second", second)):
        slope, curvature, bend = np.array(cubics, np.float64).reshape(-1, 3).T
        both[side] = Candidate(slope=slope, curvature=curvature, bend=bend)
    return dataclasses.replace(Evidence.none(0, names, [1] * len(names)), **both)


@pytest.mark.parametrize(
    ("horizon", "first", "second", "ratio"),
    [
        (1, (3, 2, 6), (2, 2, 0), 1.0),  # -3 + 1 + 1 beside -2 + 1: a tie is the first's
        (1, (3, 2, -6), (5, 2, 6), 1 / 3),  # the worst case of either sign of the third order
        (1, (0, 4, 0), (0, 2, 0), 0.5),  # both ascend: the one that ascends less
        (1, (2, 2, 0), (0, 2, 0), INF),
        (1, (0, 2, 0), (2, 2, 0), 0.0),
        (5, (3, 2, 6), (0.1, 0, 0), 26.0),  # -15 + 1 + 1 beside -0.5
        (1, (3, 2, 6), (1.5, 0, 0), 2 / 3),
        (1, (1, 0, 0), (NAN, NAN, NAN), INF),  # the second has no step for it
        (1, (NAN, NAN, NAN), (1, 0, 0), NAN),
        (1, (1, 0, 0), (1, INF, INF), INF),
    ],
)  # fmt: skip
def test_descent_compares_worst_cases_over_the_horizon(horizon, first, second, ratio):
    low, high = Descent(horizon).ratio(steps([first], [second]))
    np.testing.assert_allclose([low[0], high[0]], ratio)


def test_descent_says_what_it_compared():
    rule = Descent(horizon=2)
    seen = steps([(3, 2, 6), (1, 0, 0)], [(5, 2, 6), (NAN, NAN, NAN)])
    answer = Advisor(seen.names, rule=rule).advise(seen)
    assert answer.reason(0) == (
        "worst-case change of the loss over 2 steps: -4.00e+00 by the first optimizer, -8.00e+00 "
        "by the second"
    )
    assert answer.reason(1) == "the second optimizer has no step for it"
    assert rule.missing(seen, 0) == "next steps of both optimizers"
    with pytest.raises(ConfigError, match="next updates of both optimizers"):
        Advisor(["u0"], rule=rule).advise(evidence([1.0]))


cubics = st.lists(
    st.tuples(*[st.floats(-1e3, 1e3, allow_subnormal=False)] * 6), min_size=1, max_size=6
)


@given(cubics=cubics, exponent=st.integers(-30, 30), shuffle=st.randoms())
def test_descent_knows_neither_the_unit_of_the_loss_nor_the_order(cubics, exponent, shuffle):
    numbers = np.array(cubics)
    order = list(range(len(cubics)))
    shuffle.shuffle(order)
    rule = Descent()
    plain = rule.ratio(steps(numbers[:, :3], numbers[:, 3:]))
    moved = numbers[order] * 2.0**exponent
    other = rule.ratio(steps(moved[:, :3], moved[:, 3:]))
    assert decide(rule, steps(numbers[:, :3], numbers[:, 3:])) == [
        FIRST if low >= 1 else SECOND for low in plain.low
    ]
    np.testing.assert_array_equal(other.low, plain.low[order])


@given(cubics=cubics)
def test_descent_decides_as_the_comparison_does(cubics):
    numbers = np.array(cubics)
    ratio = Descent(1).ratio(steps(numbers[:, :3], numbers[:, 3:]))
    change = numbers[:, [1, 4]] / 2 + abs(numbers[:, [2, 5]]) / 6 - numbers[:, [0, 3]]
    np.testing.assert_array_equal(ratio.low >= 1, change[:, 0] <= change[:, 1])


# --- what all promise ----------------------------------------------------------------------------

series = st.lists(
    st.lists(
        st.tuples(st.floats(1e-6, 1e6), st.floats(-1e3, 1e3), st.floats(1e-6, 1e6)),
        min_size=5,
        max_size=5,
    ),
    min_size=1,
    max_size=6,
)


def answers(rule, measurements, *, factor=1.0, order=range(5)):
    """Choices by name over a series of measurements of (L, λ, γ)."""
    names, sizes = [f"u{i}" for i in order], [3 + i for i in order]
    advisor = Advisor(names, rule=rule)
    for k, measurement in enumerate(measurements):
        lipschitz, curvature, slope = np.array([measurement[i] for i in order]).T * factor
        limit = np.where(curvature > 0, 3 * curvature * (curvature / slope), 0)
        known = dict(lipschitz=lipschitz, threshold=limit, curvature=curvature, slope=slope)
        choice = advisor.advise(Evidence.exact(3 * k, names, sizes, **known)).choice
        yield dict(zip(names, choice.tolist(), strict=True))


@pytest.mark.parametrize("rule", [*RULES, Depth(0.3)], ids=str)
@settings(max_examples=30)
@given(measurements=series, exponent=st.integers(-30, 30))
def test_no_rule_depends_on_the_unit_of_the_loss(rule, measurements, exponent):
    rescaled = answers(rule, measurements, factor=2.0**exponent)
    assert list(rescaled) == list(answers(rule, measurements))


@pytest.mark.parametrize("rule", [*RULES, Threshold(0.5)], ids=str)
@settings(max_examples=30)
@given(measurements=series, order=st.permutations(range(5)))
def test_no_rule_depends_on_the_order_of_the_units(rule, measurements, order):
    assert list(answers(rule, measurements, order=order)) == list(answers(rule, measurements))


@pytest.mark.parametrize("rule", [*RULES, Depth(0.3), Threshold(0.5)], ids=str)
@settings(max_examples=30)
@given(measurements=series)
def test_inverted_is_the_opposite(rule, measurements):
    opposite = {NONE: NONE, FIRST: SECOND, SECOND: FIRST}
    for plain, inverted in zip(
        answers(rule, measurements), answers(Inverted(rule), measurements), strict=True
    ):
        assert inverted == {name: opposite[choice] for name, choice in plain.items()}


def test_the_constant_threshold_does_depend_on_the_unit_of_the_loss():
    measurement = [[(1.0, 1.0, 1.0)] * 5]
    (plain,), (scaled,) = (list(answers(Threshold(2.0), measurement, factor=f)) for f in (1.0, 4.0))
    assert (set(plain.values()), set(scaled.values())) == ({SECOND}, {FIRST})


# --- controls ------------------------------------------------------------------------------------


def controlled(rule, count=1000, **changes):
    names = [f"u{i}" for i in range(count)]
    return Advisor(names, rule=rule).advise(
        dataclasses.replace(Evidence.none(0, names, np.arange(1, count + 1)), **changes)
    )


def test_random_draws_its_share_by_name_and_seed():
    first, again, other = (controlled(Random(0.3, seed)).choice for seed in (0, 0, 1))
    assert (first == again).all()
    assert abs((first == FIRST).mean() - 0.3) < 0.05
    both = ((first == FIRST) & (other == FIRST)).mean()
    assert abs(both - 0.09) < 0.03  # independent
    assert set(controlled(Random(0.0)).choice) == {SECOND}
    assert set(controlled(Random(1.0)).choice) == {FIRST}


def test_static_takes_names_and_patterns():
    names = ["h.0.w", "h.0.b", "h.1.w", "odd[0]"]
    seen = Evidence.none(0, names, [1] * 4)
    assert decide(Static("h.0.*"), seen) == [FIRST, FIRST, SECOND, SECOND]
    assert decide(Static(["odd[0]", "h.1.w"]), seen) == [SECOND, SECOND, FIRST, FIRST]
    assert decide(Static([]), seen) == [SECOND] * 4


def test_static_refuses_names_that_fit_nothing():
    with pytest.raises(ConfigError, match=r"names 'h\.2\.\*', which fits none of the 2.*h\.1\.w"):
        Advisor(["h.0.w", "h.1.w"], rule=Static(["h.0.w", "h.2.*"]))


@pytest.mark.parametrize(
    ("rule", "first"),
    [
        (Depth(0.25), [7, 6]),
        (Depth(0.25, side="shallow"), [0, 1]),
        (Depth(0.4, of="parameters"), [7, 6]),  # 15 of 36 is nearest to 14.4
        (Depth(0.4, "shallow", "parameters"), range(5)),
        (Depth(0.0), []),
        (Depth(1.0), range(8)),
    ],
    ids=str,
)
def test_depth_is_a_share_of_the_flat_order(rule, first):
    assert set(np.flatnonzero(controlled(rule, 8).choice == FIRST)) == set(first)


def test_controls_take_effect_at_once():
    advisor = Advisor(["u0"], rule=FirstThenSecond(50), hysteresis=9, dwell=9)
    told = [
        advisor.advise(Evidence.none(iteration, ["u0"], [1])).choice.item()
        for iteration in (0, 49, 50, 51)
    ]
    assert told == [FIRST, FIRST, SECOND, SECOND]
    assert controlled(FirstThenSecond(0)).choice[0] == SECOND


def test_only_controls_need_no_measurement():
    fixed = {str(rule) for rule in [*RULES, Depth(), Threshold(1.0)] if rule.fixed}
    assert fixed == {str(rule) for rule in (*RULES[3:6], Depth())}
    assert Inverted(Random()).fixed
    assert Inverted(FirstThenSecond(9)).moments == (0, 9)


# --- words ---------------------------------------------------------------------------------------

REASONS = [
    (Quantile(0.3), [4, 3, 2, 1], 0, "L = 4.00e+00 ranks 12% ≤ 30% of the parameters from the l"),
    (Quantile(0.3, "low"), [4, 3, 2, 1], 1, "ranks 62% > 30% of the parameters from the smallest"),
    (Quantile(of="units"), [NAN, 1], 0, "no Lipschitz estimate yet"),
    (Random(0.5), [1], 0, "drew 0."),
    (Static("u0"), [1, 1], 0, "named by 'u0'"),
    (Static("u0"), [1, 1], 1, "not among those named"),
    (Depth(0.25), [1, 1, 1, 1], 3, "12% ≤ 25% of the units from the deepest"),
    (FirstThenSecond(7), [1], 0, "iteration 0 < 7"),
    (Inverted(NewtonSafe()), [2.0], 0, "inverted: L = 2.00e+00 ≥ 3λ²/γ = 1.00e+00"),
    (Threshold(3.0), [2.0], 0, "L = 2.00e+00 < the limit = 3.00e+00"),
]


@pytest.mark.parametrize(("rule", "lipschitz", "index", "text"), REASONS, ids=str)
def test_every_rule_says_its_reason_in_numbers(rule, lipschitz, index, text):
    seen = evidence(lipschitz)
    assert text in Advisor(seen.names, rule=rule).advise(seen).reason(index)


def test_quantile_says_what_noise_leaves_open():
    seen = evidence([0.0, 2.0, 1.0], [9.0, 2.0, 1.0])
    answer = Advisor(seen.names, rule=Quantile(0.3)).advise(seen)
    assert "noise hides it; L ranks 17% to 83% from the largest" in answer.reason(0)


def test_answers_begin_after_the_warm_up():
    advisor = Advisor(["u0"], warmup=20)
    told = []
    for iteration in (0, 10, 20, 30):
        answer = advisor.advise(evidence([9.0], iteration=iteration))
        told.append((answer.choice.item(), answer.reason(0)))
    assert told[1] == (NONE, "warm-up until iteration 20")
    assert [choice for choice, _ in told] == [NONE, NONE, FIRST, FIRST]


def test_a_rule_that_compares_updates_is_refused_without_them():
    class Longing(NewtonSafe):
        @property
        def needs_candidates(self):
            return True

    with pytest.raises(ConfigError, match="compares the next updates of both"):
        decide(Longing(), evidence([1.0]))
