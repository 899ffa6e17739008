"""Rules under the profiler: named in settings, recorded, recomputed; and what they depend on."""

import logging
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn, optim

from lipprof import AMOS, Settings, attach, load_settings, open_run
from lipprof.advice import Choice, NewtonSafe, Quantile, Random
from lipprof.errors import ConfigError
from lipprof.report.recompute import recompute

NONE, FIRST, SECOND = Choice.NONE, Choice.FIRST, Choice.SECOND
QUICK = dict(every=2, top=0, bottom=0, stability=False)
CURVES = {
    "bowl": lambda t: t**4 / 12,
    "wave": torch.sin,
    "cliff": lambda t: torch.exp(2 * t),
    "bent": lambda t: t**2 / 200 + t**3 / 6,
}


class Separable(nn.Module):
    """Tensors that do not see each other: the Hessian is diagonal, so Hutchinson is exact."""

    def __init__(self, names=tuple(CURVES)):
        super().__init__()
        for name in names:
            start = torch.linspace(0.2, 0.9, 3 + list(CURVES).index(name), dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(start))

    def forward(self):
        return sum(CURVES[name](p).sum() for name, p in self.named_parameters())


def train(model, optimizer, iterations, *, scale=1.0, push=0.0):
    for iteration in range(iterations):
        optimizer.zero_grad()
        (scale * model() * (1 + push * np.sin(iteration))).backward()
        optimizer.step()


def recommended(tmp_path, rule, *, names=tuple(CURVES), scale=1.0, batches=((1, 2, 3, 2),), **more):
    """Choices by name at every measurement; a sample weighs the whole loss by its number."""
    model = Separable(names)
    optimizer = optim.SGD(model.parameters(), lr=0.05 / scale)
    reduce = torch.sum if more.get("reduction") == "sum" else torch.mean
    settings = QUICK | dict(
        loss=lambda model, batch: scale * model() * reduce(batch),
        probe=[torch.tensor(batch, dtype=torch.float64) for batch in batches],
        rule=rule,
        dwell=1,
        hysteresis=1.2,
    )
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.h5"
    with attach(model, optimizer, path, **settings | more):
        train(model, optimizer, 20, scale=scale, push=0.8)
    with open_run(path) as run:
        return [dict(zip(run.tensor_names, row, strict=True)) for row in run["recommendation"]]


@pytest.mark.parametrize("rule", ["newton-safe", "quantile(share=0.4)"])
def test_recommendations_do_not_depend_on_the_loss_s_unit_batches_or_the_order(tmp_path, rule):
    expected = recommended(tmp_path, rule)
    assert {FIRST, SECOND} <= set(expected[-1].values())
    for same in (
        {"scale": 1000.0},
        {"reduction": "sum"},
        {"batches": [(1, 2, 3), (2,)]},
        {"batches": [(1, 2), (3, 2)], "reduction": "sum"},
        {"names": tuple(CURVES)[::-1]},
    ):
        assert recommended(tmp_path, rule, **same) == expected, same


def test_a_rule_is_given_as_text_or_as_itself_and_recorded(tmp_path):
    expected = recommended(tmp_path, "quantile(share=0.4, side=low)")
    assert recommended(tmp_path, Quantile(0.4, "low")) == expected
    with open_run(tmp_path / "1.h5") as run:
        assert run.settings.rule == "quantile(share=0.4, side='low')"
        answer = run.recommendation()
        assert answer.rule == Quantile(0.4, "low")
        assert all("from the smallest" in answer.reason(i) for i in range(4))
        again = recompute(run)
        np.testing.assert_array_equal(again.choice, run["recommendation"][-1])
        assert recompute(run, rule="random(share=1)").first_order_share == 1.0
        assert set(recompute(run, rule="depth(share=0)", warmup=10**6).choice) == {NONE}


def test_nothing_is_recommended_during_the_warm_up(tmp_path):
    told = recommended(tmp_path, "newton-safe", warmup=9)
    decided = [set(choices.values()) != {NONE} for choices in told]
    assert decided == [False] * 5 + [True] * 5  # at 0, 2, ..., 18


def amos_of(model, named=True, **options):
    params = model.named_parameters() if named else model.parameters()
    return AMOS(params, partial(optim.SGD, lr=0.05), partial(optim.SGD, lr=0.01), **options)


def test_a_control_steers_amos_though_nothing_is_measured(tmp_path):
    model = Separable()
    amos = amos_of(model)
    settings = QUICK | dict(diagonal_probes=0, rule="first-then-second(until=4)")
    with attach(model, amos, tmp_path / "run.h5", loss=lambda m: m(), **settings):
        train(model, amos, 7)
    with open_run(tmp_path / "run.h5") as run:
        assert [set(row) for row in run["assigned"]] == [{FIRST}, {FIRST}, {SECOND}, {SECOND}]
        assert run.recommendation().reason(0) == "iteration 6 ≥ 4"


def test_amos_s_own_rule_is_said_not_to_count_under_a_profiler(tmp_path, caplog):
    model = Separable()
    with caplog.at_level(logging.WARNING, logger="lipprof"):
        attach(model, amos_of(model, rule=Random(0.3)), tmp_path / "a.h5", **QUICK).close()
        attach(model, amos_of(model), tmp_path / "b.h5", rule=Random(0.3), **QUICK).close()
        both = amos_of(model, rule=NewtonSafe())
        attach(model, both, tmp_path / "c.h5", rule="newton-safe", **QUICK).close()
    (line,) = (message for message in caplog.messages if "built with rule" in message)
    assert "rule random(share=0.3), but follows the profiler's, newton-safe" in line


def test_what_cannot_be_followed_is_refused_at_attach(tmp_path):
    model = Separable()
    with pytest.raises(ConfigError, match=r"without names. Pass model\.named_parameters"):
        attach(model, amos_of(model, named=False), tmp_path / "run.h5", **QUICK)
    renamed = [(f"net.{name}", p) for name, p in model.named_parameters()]
    amos = AMOS(renamed, partial(optim.SGD, lr=0.05), partial(optim.SGD, lr=0.01))
    with pytest.raises(ConfigError, match=r"Unknown here: bent, .*missing in it: net\.bent"):
        attach(model, amos, tmp_path / "run.h5", **QUICK)
    with pytest.raises(ConfigError, match=r"'bowls', which fits none of the 4.*bowl"):
        attach(model, amos_of(model), tmp_path / "run.h5", rule="static(first=bowls)", **QUICK)
    with pytest.raises(ConfigError, match="expected share in"):
        attach(model, amos_of(model), tmp_path / "run.h5", rule="quantile(share=7)", **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_settings_keep_rules_as_text_and_refuse_what_is_none():
    assert load_settings(rule=Quantile(0.4)).rule == "quantile(share=0.4)"
    assert Settings(rule=" quantile( share=.4 )").rule == "quantile(share=0.4)"
    with pytest.raises(ConfigError, match=r"settings: rule='coin': Unknown rule 'coin'. Known: n"):
        load_settings(rule="coin")
    with pytest.raises(ConfigError, match=r"rule='quantile\(part=1\)'.*options of quantile: share"):
        load_settings(rule="quantile(part=1)")
