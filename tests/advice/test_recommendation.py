"""What a recommendation says of itself: shares, worst cases, reasons."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lipprof.advice import Choice, Evidence, Recommendation, rule_of
from lipprof.errors import ConfigError
from lipprof.lipschitz import newton_threshold, pessimistic_model

NONE, FIRST, SECOND = Choice.NONE, Choice.FIRST, Choice.SECOND
positive = st.floats(1e-5, 1e5)


def recommend(*choices, numel=None, rule="newton-safe", warmup=0, **numbers):
    count = len(choices)
    columns = {"lipschitz": 1.0, "threshold": 1.0, "curvature": 1.0, "slope": 1.0} | numbers
    columns = {
        "lipschitz_upper": columns["lipschitz"],
        "threshold_low": columns["threshold"],
        "threshold_high": columns["threshold"],
    } | columns
    evidence = Evidence(
        iteration=0,
        names=[f"layer{i}" for i in range(count)],
        numel=np.array([1] * count if numel is None else numel),
        **{name: np.full(count, value) for name, value in columns.items()},
    )
    weighed = rule_of(rule, 1.0).ratio(evidence)
    return Recommendation(
        rule=rule_of(rule, 1.0),
        evidence=evidence,
        low=weighed.low,
        high=weighed.high,
        choice=np.array(choices, np.int8),
        stable_for=np.zeros(count, np.int64),
        warmup=warmup,
    )


@pytest.mark.parametrize(
    ("choices", "numel", "share"),
    [
        ([FIRST, SECOND], [90, 10], 0.9),
        ([SECOND, SECOND], [90, 10], 0.0),
        ([FIRST, SECOND, NONE], [1, 3, 1000], 0.25),
    ],
)
def test_share_counts_parameters_of_decided_tensors(choices, numel, share):
    assert recommend(*choices, numel=numel).first_order_share == share


@pytest.mark.parametrize("choices", [[], [NONE, NONE]])
def test_no_share_without_an_answer(choices):
    assert math.isnan(recommend(*choices).first_order_share)


@given(slope=positive, curvature=positive, factor=st.floats(1e-3, 1e3))
def test_newton_descent_is_positive_exactly_above_eq_8(slope, curvature, factor):
    assume(abs(factor - 1) > 1e-9)
    space = {
        "slope": torch.tensor(slope, dtype=torch.float64),
        "curvature": torch.tensor(curvature, dtype=torch.float64),
    }
    lipschitz = factor * newton_threshold(**space)
    descent = recommend(
        SECOND, lipschitz=lipschitz.item(), curvature=curvature, slope=slope
    ).evidence.newton_descent.item()
    assert (descent > 0) == (factor > 1)
    model = pessimistic_model(space["slope"] / space["curvature"], **space, lipschitz=lipschitz)
    assert descent == pytest.approx(model.item(), rel=1e-5)


@pytest.mark.parametrize("curvature", [0.0, -1.0, math.nan])
def test_newton_does_not_descend_without_positive_curvature(curvature):
    assert np.isnan(recommend(FIRST, curvature=curvature).evidence.newton_descent).all()


REASONS = {
    "no answer": (NONE, {"lipschitz": math.nan}, "no Lipschitz estimate yet"),
    "above": (FIRST, {"lipschitz": 2.0}, "L = 2.00e+00 ≥ 3λ²/γ = 1.00e+00"),
    "below": (SECOND, {"lipschitz": 0.5}, "L = 5.00e-01 < 3λ²/γ = 1.00e+00"),
    "held first": (FIRST, {"lipschitz": 0.9}, "< 3λ²/γ = 1.00e+00, kept first-order by hyst"),
    "held second": (SECOND, {"lipschitz": 1.1}, "≥ 3λ²/γ = 1.00e+00, kept second-order by hyst"),
    "constant": (FIRST, {"rule": "threshold"}, "≥ the limit = 1.00e+00"),
    "constant, concave": (
        SECOND,
        {"rule": "threshold", "curvature": -1.0, "lipschitz": 0.5},
        "L = 5.00e-01 < the limit",
    ),
    "concave": (FIRST, {"curvature": -1.0, "threshold": 0.0}, "λ = -1.00e+00 is not positive"),
    "concave, held": (
        SECOND,
        {"curvature": -1.0, "threshold": 0.0},
        "Newton would ascend, kept second-order by hysteresis",
    ),
    "L unknown": (FIRST, {"lipschitz": math.nan}, "no Lipschitz estimate now: kept first-order"),
    "noise": (
        NONE,
        {"lipschitz": 0.0, "lipschitz_upper": 3.0, "threshold_low": 0.5},
        "noise hides it; L is 0.0e+00 to 3.0e+00, 3λ²/γ 5.0e-01 to 1.0e+00",
    ),
    "noise, kept": (
        SECOND,
        {"lipschitz": 0.5, "lipschitz_upper": 1.5},
        "noise hides it: kept second-order",
    ),
    "mostly noise": (SECOND, {"lipschitz": 0.0, "lipschitz_upper": 0.5}, "L ≤ 5.00e-01 < 3λ²/γ"),
    "warm-up": (NONE, {"warmup": 50}, "warm-up until iteration 50"),
    "λ unknown": (
        SECOND,
        {"curvature": math.nan, "threshold": math.nan},
        "no curvature estimate now: kept second-order",
    ),
}


@pytest.mark.parametrize(("choice", "numbers", "text"), REASONS.values(), ids=REASONS)
def test_reason(choice, numbers, text):
    assert text in recommend(choice, **numbers).reason(0)


@pytest.mark.parametrize("name", ["above", "below", "concave"])
def test_reason_mentions_hysteresis_only_where_it_decided(name):
    choice, numbers, _ = REASONS[name]
    assert "kept" not in recommend(choice, **numbers).reason(0)


@pytest.mark.parametrize(
    ("lipschitz", "upper", "noise"), [(1.0, 1.0, 0.0), (0.0, 2.0, 1.0), (1.0, 2.0, 0.75), (0, 0, 0)]
)
def test_noise_is_its_share_of_the_mean_square(lipschitz, upper, noise):
    assert recommend(FIRST, lipschitz=lipschitz, lipschitz_upper=upper).evidence.noise == [noise]


def test_choices_are_found_by_name():
    recommendation = recommend(FIRST, SECOND, NONE)
    assert [recommendation[f"layer{i}"] for i in range(3)] == [FIRST, SECOND, NONE]
    with pytest.raises(ConfigError, match="'layre1'; did you mean 'layer1'"):
        recommendation["layre1"]
    assert FIRST.label == "first-order"


def test_codes_are_those_of_the_run_file():
    assert [int(choice) for choice in (NONE, FIRST, SECOND)] == [0, 1, 2]
