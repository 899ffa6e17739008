"""The overhead budget on a simulated clock, and in a loop whose budget is next to nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lipprof
from lipprof.profiler.budget import PATIENCE, Budget, Work
from lipprof.settings import Settings

FULL = Work(5, 5, 8, stability=True)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def simulate(*, limit, iterations, step=1.0, build=0.5, matvec=0.1, factor=1.0, every=1, **fields):
    """A loop of steps and measurements; ``factor``: true cost over the foreseen one.

    Returns:
        The budget, the clock, and what was measured at which iteration.
    """
    clock = Clock()
    budget = Budget(Settings(max_overhead=limit, **fields), clock=clock)
    done = {}
    for iteration in range(iterations):
        if iteration % every == 0:
            if not budget.priced:
                clock.now += build + matvec
                budget.price(build=build, matvec=matvec)
                budget.pay(None, build + matvec)
            work = budget.plan()
            if work is not None:
                cost = factor * (build + matvec * work.expected_matvecs)
                clock.now += cost
                budget.pay(work, cost)
                done[iteration] = work
        clock.now += step
    return budget, clock, done


@given(
    limit=st.floats(0.02, 0.6),
    step=st.floats(0.01, 10.0),
    matvec=st.floats(0.001, 1.0),
    every=st.integers(1, 20),
)
def test_share_stays_within_the_limit(limit, step, matvec, every):
    budget, clock, _ = simulate(
        limit=limit, iterations=400, step=step, matvec=matvec, build=3 * matvec, every=every
    )
    pricing = 4 * matvec
    assert budget.spent <= limit * clock.now * (1 + 1e-9) + pricing


@given(factor=st.floats(0.3, 3.0))
def test_a_wrong_forecast_is_corrected(factor):
    budget, clock, _ = simulate(limit=0.2, iterations=3000, factor=factor)
    assert budget.spent <= 0.2 * clock.now * 1.05


def test_what_is_affordable_is_measured_in_full():
    _, _, done = simulate(limit=0.5, iterations=100, step=100.0)
    assert set(done.values()) == {FULL}
    assert set(done) == set(range(1, 100))  # at 0 no time has passed yet


def test_the_schedule_stretches_before_the_work_shrinks():
    _, _, done = simulate(limit=0.5, iterations=300, every=10, matvec=0.2)
    assert set(done.values()) == {FULL}
    assert (max(done) - min(done)) / (len(done) - 1) > 15


def test_after_patience_less_is_measured():
    _, _, done = simulate(limit=0.1, iterations=200, every=20, matvec=0.4)
    kinds = set(done.values())
    assert Work(1, 0, 2) in kinds or Work(5, 0, 8) in kinds
    assert min(done) >= PATIENCE * 20


def test_without_a_limit_all_is_measured_always():
    _, _, done = simulate(limit=None, iterations=5, step=1e-9)
    assert done == dict.fromkeys(range(5), FULL)


@pytest.mark.parametrize(
    ("fields", "least"),
    [
        ({"top": 3, "bottom": 2}, Work(1, 0, 2)),
        ({"top": 0, "bottom": 2}, Work(0, 1, 2)),
        ({"top": 1, "bottom": 0, "diagonal_probes": 0}, Work(1, 0, 0)),
        ({"top": 0, "bottom": 0, "diagonal_probes": 8}, Work(0, 0, 8, stability=True)),
    ],
)
def test_the_least_work(fields, least):
    _, _, done = simulate(limit=0.1, iterations=2000, every=10, step=0.3, **fields)
    assert list(done.values())[0] == least or least in done.values()


def loop(path, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    inputs, targets = torch.randn(16, 6), torch.randn(16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with lipprof.attach(model, optimizer, path, every=2, top=2, bottom=1, **settings):
        for _ in range(20):
            optimizer.zero_grad()
            (model(inputs) - targets).square().mean().backward()
            optimizer.step()
    return [p.clone() for p in model.parameters()]


def test_a_budget_of_nothing_measures_nothing_and_changes_nothing(tmp_path):
    free = loop(tmp_path / "free.h5")
    tight = loop(tmp_path / "tight.h5", max_overhead=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(free, tight, strict=True))
    with lipprof.open_run(tmp_path / "free.h5") as all_of_it:
        assert len(all_of_it) == 10
    with lipprof.open_run(tmp_path / "tight.h5") as nothing:
        assert len(nothing) == 0


def test_pairs_keep_their_places_when_only_some_are_measured(tmp_path, monkeypatch):
    plans = [Work(2, 1, 8), Work(2, 0, 8), Work(1, 0, 2), Work(2, 1, 8)]
    monkeypatch.setattr(Budget, "plan", lambda _: plans.pop(0) if plans else None)
    loop(tmp_path / "run.h5", max_overhead=0.5)
    with lipprof.open_run(tmp_path / "run.h5") as run:
        known = ~np.isnan(run["eigenvalue"])
        assert known.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]
        assert (run["converged"] == known).all()
        assert run["lipschitz_drift"][1:3, 0].min() > 0
        assert np.isnan(run["step_projection"][2, 1:]).all()
