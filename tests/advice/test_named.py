"""Rules as text: read, written, refused."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipprof.advice import (
    Depth,
    Descent,
    FirstThenSecond,
    Inverted,
    NewtonSafe,
    Quantile,
    Random,
    Static,
    Threshold,
    rule_of,
)
from lipprof.advice.named import RULES
from lipprof.errors import ConfigError
from lipprof.rule_text import OPTIONS

share = st.floats(0, 1)
plain = st.one_of(
    st.just(NewtonSafe()),
    st.builds(Threshold, st.floats(0, exclude_min=True, allow_infinity=False)),
    st.builds(Quantile, share, st.sampled_from(["high", "low"]), st.sampled_from(["units"])),
    st.builds(Random, share, st.integers()),
    st.builds(Descent, st.floats(0, exclude_min=True, allow_infinity=False)),
    st.builds(Static, st.lists(st.text(st.characters(codec="utf-8")), max_size=3)),
    st.builds(Depth, share, st.sampled_from(["deep", "shallow"])),
    st.builds(FirstThenSecond, st.integers(0)),
)
rules = st.one_of(plain, plain.map(Inverted), plain.map(Inverted).map(Inverted))


def test_the_names_that_settings_know_are_those_of_the_rules():
    assert OPTIONS.keys() == RULES.keys()
    for name, rule in RULES.items():
        assert OPTIONS[name] == tuple(field.name for field in dataclasses.fields(rule))
        assert rule.name == name


@given(rules)
def test_a_rule_is_read_back_from_its_text(rule):
    assert rule_of(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("quantile", Quantile()),
        ("quantile()", Quantile()),
        (" quantile ( side = low , share = .5 ) ", Quantile(0.5, "low")),
        ("quantile(side='low')", Quantile(side="low")),
        ("static(first=['a.*', 'b'])", Static(("a.*", "b"))),
        ("static(first='a')", Static(("a",))),
        ("inverted(rule=newton-safe)", Inverted(NewtonSafe())),
        ("inverted(rule='random(share=0.1)')", Inverted(Random(0.1))),
        ("inverted(rule=inverted(rule=depth(of=units)))", Inverted(Inverted(Depth()))),
        ("descent", Descent()),
        ("descent(horizon=3)", Descent(3)),
        ("threshold", Threshold(2e-10)),
        ("threshold(limit=1e-3)", Threshold(1e-3)),
    ],
)  # fmt: skip
def test_texts(text, rule):
    assert rule_of(text) == rule
    assert rule_of(rule) is rule


def test_the_constant_reaches_a_nested_threshold():
    assert rule_of("inverted(rule=threshold)", 0.5) == Inverted(Threshold(0.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("coin", "Unknown rule 'coin'. Known: newton-safe, threshold, quantile"),
        ("Quantile(share=0.3)", "Unknown rule"),
        ("quantile(share=0.3", "Unknown rule"),
        ("quantile(0.3)", r"options of quantile: share, side, of"),
        ("quantile(part=0.3)", r"cannot be read.*options of quantile"),
        ("quantile(share=)", "cannot be read"),
        ("quantile(**x)", "cannot be read"),
        ("quantile(share=1)(side=2)", "cannot be read"),
        ("quantile(share=" + "(" * 5000 + ")" * 5000 + ")", "cannot be read"),
        ("newton-safe(limit=1)", "options of newton-safe: none"),
        ("quantile(share=1.5)", r"share=1.5.*expected share in \[0, 1\]"),
        ("quantile(share=nan)", r"expected share in \[0, 1\]"),
        ("quantile(share=True)", r"expected share in \[0, 1\]"),
        ("quantile(side=left)", "expected side high or low"),
        ("quantile(of=tensors)", "expected of parameters or units"),
        ("random(share=-1)", r"expected share in \[0, 1\]"),
        ("random(seed=1.5)", "expected a whole number as seed"),
        ("depth(share='x')", r"expected share in \[0, 1\]"),
        ("depth(side=high)", "expected side deep or shallow"),
        ("depth(of=layers)", "expected of units or parameters"),
        ("first-then-second", r"lacks an option: write first-then-second\(until=...\)"),
        ("first-then-second(until=-1)", "expected a whole number >= 0"),
        ("first-then-second(until=1.5)", "expected a whole number >= 0"),
        ("descent(horizon=0)", "expected a number > 0 as horizon"),
        ("descent(horizon=nan)", "expected a number > 0 as horizon"),
        ("static", "lacks an option"),
        ("static(first=3)", "expected names or patterns"),
        ("static(first=[1])", "expected names or patterns"),
        ("inverted", "lacks an option"),
        ("inverted(rule=coin)", "Unknown rule 'coin'"),
        ("inverted(rule=3)", "Unknown rule '3'"),
        ("threshold(limit=0)", "expected limit > 0"),
        ("threshold(limit=-2e-10)", "expected limit > 0"),
        ("threshold(limit=nan)", "expected limit > 0"),
        ("threshold(limit=[1])", "expected limit > 0"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        rule_of(text)


def test_what_is_no_rule_is_refused():
    with pytest.raises(ConfigError, match="`rule` is a float; expected one of newton-safe"):
        rule_of(0.5)
    with pytest.raises(ConfigError, match=r"such as Inverted\(NewtonSafe"):
        Inverted("newton-safe")
