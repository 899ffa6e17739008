"""The rules and their hysteresis, on series of numbers whose answers can be told by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipprof.advice import Advisor, Choice, Evidence
from lipprof.errors import ConfigError, ShapeError
from lipprof.lipschitz import newton_threshold

NONE, FIRST, SECOND = Choice.NONE, Choice.FIRST, Choice.SECOND
NAN, INF = math.nan, math.inf


def advisor(tensors=1, **options):
    return Advisor(names(tensors), **options)


def names(tensors):
    return [f"layer{i}" for i in range(tensors)]


def advise(advisor, lipschitz, limit=1.0, **numbers):
    return advisor.advise(evidence(lipschitz, limit, **numbers))


def evidence(lipschitz, limit=1.0, *, iteration=0, bounds=None, **numbers):
    columns = {"lipschitz": lipschitz, "threshold": limit, "curvature": 1.0, "slope": 1.0} | numbers
    count = len(lipschitz)
    columns = {name: np.full(count, value, np.float64) for name, value in columns.items()}
    exact = Evidence.exact(iteration, names(count), [10] * count, **columns)
    margins = {name: np.full(count, value) for name, value in (bounds or {}).items()}
    return dataclasses.replace(exact, **margins)


def answers(series, limit=1.0, **options):
    """The choices for one tensor whose L takes the values of the series."""
    one = advisor(**options)
    return [one_answer(one, lipschitz, limit) for lipschitz in series]


def one_answer(advisor, lipschitz, limit=1.0):
    return Choice(int(advise(advisor, [lipschitz], limit).choice[0]))


@pytest.mark.parametrize(
    ("lipschitz", "limit", "answer"),
    [
        (0.99, 1.0, SECOND),
        (1.0, 1.0, FIRST),
        (0.0, 0.0, FIRST),
        (1e300, INF, SECOND),
        (NAN, 1.0, NONE),
        (1.0, NAN, NONE),
    ],
)
def test_first_answer(lipschitz, limit, answer):
    assert answers([lipschitz], limit) == [answer]


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ([0.5, 1.9, 2.0, 1.0], [SECOND, SECOND, FIRST, FIRST]),
        ([1.5, 0.6, 0.5, 0.49], [FIRST, FIRST, FIRST, SECOND]),
        ([NAN, 0.9, 1.1], [NONE, SECOND, SECOND]),
    ],
)
def test_an_answer_changes_only_past_the_factor(series, expected):
    assert answers(series, hysteresis=2, dwell=1) == expected


@pytest.mark.parametrize(
    ("series", "flips_at"),
    [
        ([0, 9, 9, 9], 3),
        ([0, 9, 9, 0, 9, 9, 9], 6),
        ([0, 9, NAN, 9, 9], 4),
        ([0, 9, 1.5, 9, 9, 9], 5),
        ([9, 0, 0, 0], 3),
    ],
    ids=["three running", "broken run", "nan does not count", "between does not count", "back"],
)
def test_an_answer_changes_only_after_the_dwell(series, flips_at):
    choices = answers(series, hysteresis=2, dwell=3)
    assert len(set(choices[:flips_at])) == 1
    assert choices[flips_at] != choices[0]


@given(st.lists(st.one_of(st.just(NAN), st.floats(0, 10)), min_size=1))
def test_without_hysteresis_the_rule_alone_decides(series):
    expected, answer = [], NONE
    for lipschitz in series:
        if not math.isnan(lipschitz):
            answer = FIRST if lipschitz >= 1 else SECOND
        expected.append(answer)
    assert answers(series, hysteresis=1, dwell=1) == expected


@pytest.mark.parametrize("before", [0.5, 5.0])
def test_nan_leaves_the_answer(before):
    first, *later = answers([before, NAN, NAN])
    assert later == [first, first]


def test_tensors_are_judged_apart():
    three = advisor(3, hysteresis=2, dwell=1)
    assert advise(three, [0.5, 1.5, NAN]).choice.tolist() == [SECOND, FIRST, NONE]
    assert advise(three, [3.0, 0.9, 0.1]).choice.tolist() == [FIRST, FIRST, SECOND]


def test_stable_for_counts_measurements_since_the_change():
    one = advisor(hysteresis=2, dwell=1)
    series = [NAN, 0.5, 0.5, NAN, 3.0, 3.0]
    assert [int(advise(one, [x]).stable_for[0]) for x in series] == [0, 0, 1, 2, 0, 1]


def test_a_recommendation_is_not_changed_by_the_next():
    one = advisor(dwell=1)
    earlier = advise(one, [0.1])
    advise(one, [9.0])
    assert earlier.choice.tolist() == [SECOND]


@pytest.mark.parametrize(
    ("upper", "limits", "answer"),
    [
        (0.9, (1.0, 1.0), SECOND),
        (1.1, (1.0, 1.0), NONE),
        (0.9, (0.8, 2.0), NONE),
        (0.7, (0.8, 2.0), SECOND),
        (9.0, (0.1, 0.5), FIRST),
        (9.0, (0.1, 0.6), NONE),
        (NAN, (1.0, 1.0), NONE),
    ],
)
def test_bounds_that_do_not_decide_leave_the_question_open(upper, limits, answer):
    bounds = dict(lipschitz_upper=upper, threshold_low=limits[0], threshold_high=limits[1])
    assert advise(advisor(), [0.5], bounds=bounds).choice == [answer]


def test_an_answer_is_kept_through_noise():
    one = advisor(hysteresis=1.0, dwell=1)
    told = [
        advise(one, [low], bounds={"lipschitz_upper": high}).choice.item()
        for low, high in [(0.2, 3.0), (0.2, 0.3), (0.2, 3.0), (2.0, 3.0), (0.2, 3.0), (0.1, 0.2)]
    ]
    assert told == [NONE, SECOND, SECOND, FIRST, FIRST, SECOND]


def test_threshold_rule_compares_with_its_constant():
    two = advisor(2, rule="threshold", threshold=2e-10)
    recommendation = advise(two, [1e-10, 2e-10], limit=[0.0, INF], curvature=[-1.0, 1.0])
    assert recommendation.choice.tolist() == [SECOND, FIRST]
    assert recommendation.threshold.tolist() == [2e-10, 2e-10]


@pytest.mark.parametrize("curvature", [0.0, -1.0])
@pytest.mark.parametrize("lipschitz", [0.0, 1e-300, 1.0])
def test_newton_safe_keeps_newton_away_from_concave_tensors(curvature, lipschitz):
    limit = newton_threshold(
        slope=torch.ones(1).double(), curvature=torch.tensor([curvature]).double()
    )
    recommendation = advise(advisor(), [lipschitz], limit.numpy(), curvature=curvature)
    assert recommendation.choice.tolist() == [FIRST]


numbers = st.floats(1e-6, 1e6)
measurements = st.lists(st.tuples(numbers, st.floats(-1e3, 1e3), numbers), min_size=1, max_size=8)


@given(measurements=measurements, exponent=st.integers(-30, 30))
def test_newton_safe_does_not_depend_on_the_unit_of_the_loss(measurements, exponent):
    def choices(factor):
        one = advisor()
        for triple in measurements:
            lipschitz, curvature, slope = torch.tensor(triple, dtype=torch.float64) * factor
            limit = newton_threshold(slope=slope, curvature=curvature)
            yield one_answer(one, lipschitz.item(), limit.item())

    assert list(choices(1.0)) == list(choices(2.0**exponent))


STUCK, MOVING = (9.0, 0.1), (9.0, 1.0)
SPLIT = (0.1, 0.1)


@pytest.mark.parametrize(
    ("measurements", "collapsing"),
    [
        ([STUCK] * 2, False),
        ([STUCK] * 3, True),
        ([STUCK, STUCK, MOVING, STUCK, STUCK], False),
        ([MOVING] * 5, False),
        ([SPLIT] * 5, False),
        ([(9.0, NAN)] * 5, False),
        ([(NAN, 0.1)] * 5, False),
    ],
    ids=["two", "three", "interrupted", "moving", "second-order", "no distance", "no answer"],
)
def test_collapse_is_all_first_order_and_no_movement(measurements, collapsing):
    one = advisor()
    for lipschitz, distance_ratio in measurements:
        seen = one.collapsing(advise(one, [lipschitz]), distance_ratio)
    assert seen is collapsing


@pytest.mark.parametrize(
    "bad",
    [
        {"rule": "coin"},
        {"threshold": 0.0},
        {"threshold": NAN},
        {"hysteresis": 0.5},
        {"hysteresis": NAN},
        {"dwell": 0},
        {"warmup": -1},
    ],
    ids=str,
)
def test_refuses_what_makes_no_sense(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        advisor(**bad)


@pytest.mark.parametrize("name", ["lipschitz", "threshold", "curvature", "slope"])
def test_refuses_columns_of_another_length(name):
    columns = dict.fromkeys(["lipschitz", "threshold", "curvature", "slope"], [1.0, 1.0])
    with pytest.raises(ShapeError, match=rf"`{name}` has shape \(3,\).* 2 tensors"):
        Evidence.exact(0, names(2), [1, 1], **columns | {name: [1.0] * 3})
    with pytest.raises(ShapeError, match="of 3 tensors; expected 2"):
        advise(advisor(2), [1.0] * 3)


@pytest.mark.parametrize("split", range(1, 7))
def test_state_dict_goes_on_exactly_and_survives_json(split):
    def said(advisor, series):
        for lipschitz in series:
            answer = advise(advisor, [lipschitz])
            yield (*answer.choice, *answer.stable_for, advisor.collapsing(answer, 0.1))

    series = [0.5, 9.0, NAN, 9.0, 9.0, 9.0, 0.1, 0.1]
    stopped, resumed = advisor(), advisor()
    before = list(said(stopped, series[:split]))
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert before + list(said(resumed, series[split:])) == list(said(advisor(), series))
