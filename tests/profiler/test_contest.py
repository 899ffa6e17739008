"""Trials of AMOS's arms: neither disturbs the other, and the better goes on."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.optim import SGD, AdamW

import lipprof
from lipprof import AMOS, Choice, Contest, ContestPlan
from lipprof.errors import ConfigError
from lipprof.optim import guard

from ..optim.problems import Problem

PLAN = ContestPlan(first=3, period=4, growth=10.0)
STEPS = 10


def closure_for(problem, model, iteration):
    def closure():
        model.zero_grad()
        loss = problem.loss(model, iteration)
        loss.backward()
        return loss

    return closure


def decided_for(side):
    """A contest that one side wins whatever happens."""

    class Decided(Contest):
        def _decide(self, first, second, before):
            decision = super()._decide(first, second, before)
            return replace(decision, choice=np.full_like(decision.choice, side))

    return Decided


def compete(first, second, *, steps=STEPS, plan=PLAN, calibrate=False, kind=Contest, **options):
    problem = Problem(dtype=torch.float64)
    model = problem.model()
    amos = AMOS(model.named_parameters(), first=first, second=second, **options)
    loss = {"loss": lambda m: problem.loss(m, 60)}
    contest = kind(model, amos, **loss, plan=plan, calibrate=calibrate)
    for iteration in range(steps):
        contest.step(closure_for(problem, model, iteration))
    return model, contest


def alone(build, steps=STEPS, model=None, start=0):
    problem = Problem(dtype=torch.float64)
    model = model or problem.model()
    optimizer = build(model.parameters())
    for iteration in range(start, steps):
        optimizer.step(closure_for(problem, model, iteration))
    return model


def assert_same(model, other):
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_an_arm_that_is_too_short_loses_and_leaves_no_trace():
    first = partial(AdamW, lr=1e-2)
    model, contest = compete(first, partial(SGD, lr=1e-9))
    assert_same(model, alone(first))
    assert set(contest.optimizer.assigned.values()) == {Choice.FIRST}
    assert contest.optimizer.switches == []


@pytest.mark.parametrize("lr", [1e3, 1e200, 1e308])
def test_an_arm_that_is_too_long_loses_and_leaves_no_trace(lr):
    first = partial(AdamW, lr=1e-2)
    model, contest = compete(first, partial(SGD, lr=lr))
    assert_same(model, alone(first))
    assert len(contest.decisions) == 1


@pytest.mark.parametrize("plan", [PLAN, ContestPlan(first=0, period=5)])
@pytest.mark.parametrize(
    ("first", "second", "side"),
    [
        (partial(AdamW, lr=1e-2), partial(SGD, lr=1e-9), Choice.FIRST),
        (partial(SGD, lr=1e-9), partial(SGD, lr=0.1), Choice.SECOND),
    ],
)
def test_the_winner_trains_as_if_it_had_been_alone(plan, first, second, side):
    model, contest = compete(first, second, plan=plan)
    end = plan.first + plan.period
    assert [d.iteration for d in contest.decisions] == [end]
    assert {s.iteration for s in contest.optimizer.switches} <= {end}
    assert set(contest.optimizer.assigned.values()) == {side}
    assert_same(model, alone(first if side is Choice.FIRST else second))


def test_what_decides_starts_from_where_the_first_arm_is():
    first, second = partial(SGD, lr=0.05), partial(SGD, lr=0.1)
    _, contest = compete(first, second)
    from_common_ground = alone(second, 7, model=alone(first, PLAN.first), start=PLAN.first)
    problem = Problem(dtype=torch.float64)
    losses = contest.decisions[0].rule
    assert losses.second.end == pytest.approx(problem.loss(from_common_ground, 60).item(), 1e-12)
    assert losses.first.end == pytest.approx(problem.loss(alone(first, 7), 60).item(), 1e-12)


def test_a_later_winner_goes_on_from_where_its_trial_began():
    problem = Problem(dtype=torch.float64)
    model = problem.model()
    first, second = partial(SGD, lr=1e-9), partial(SGD, lr=0.1)
    amos = AMOS(model.named_parameters(), first=first, second=second)
    contest = Contest(model, amos, loss=lambda m: problem.loss(m, 60), plan=PLAN)
    contest.load_state_dict(contest.state_dict() | {"trials": 1})
    for iteration in range(STEPS):
        contest.step(closure_for(problem, model, iteration))
    assert_same(model, alone(second, model=alone(first, PLAN.first), start=PLAN.first))


class Decaying(SGD):
    """SGD whose learning rate falls with a count of steps that it keeps in its groups."""

    def step(self, closure=None):
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["taken"] = group.get("taken", 0) + 1
            group["lr"] /= group["taken"]
        super().step(closure)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate


def test_contestants_do_not_share_what_an_optimizer_keeps_in_its_groups():
    second = partial(Decaying, lr=0.3)
    model, contest = compete(partial(SGD, lr=1e-9), second)
    assert set(contest.optimizer.assigned.values()) == {Choice.SECOND}
    assert_same(model, alone(second))


def test_a_trial_that_a_restart_interrupts_begins_again():
    problem = Problem(dtype=torch.float64)
    arms = {"first": partial(SGD, lr=1e-9), "second": partial(SGD, lr=0.1)}

    def build():
        model = problem.model()
        amos = AMOS(model.named_parameters(), **arms)
        loss = {"loss": lambda m: problem.loss(m, 60)}
        return model, amos, decided_for(Choice.SECOND)(model, amos, **loss, plan=PLAN)

    whole = build()
    for iteration in range(2):
        whole[2].step(closure_for(problem, whole[0], iteration))
    resumed = build()
    for mine, saved in zip(resumed, whole, strict=True):
        mine.load_state_dict(saved.state_dict())
    model, amos, contest = resumed
    for iteration in range(2, 12):
        contest.step(closure_for(problem, model, iteration))
    assert [d.iteration for d in contest.decisions] == [2 + 7]
    assert set(amos.assigned.values()) == {Choice.SECOND}
    assert contest.extra == 2 + 7 + 4
    expected = alone(arms["second"], 12, model=alone(arms["first"], 2), start=2)
    assert_same(model, expected)


def test_a_first_arm_that_was_away_may_come_back():
    first, second = partial(AdamW, lr=1e-2), partial(SGD, lr=1e-9)
    _, contest = compete(first, second, start="second")
    assert set(contest.optimizer.assigned.values()) == {Choice.FIRST}


@pytest.mark.parametrize("trials", [0, 1])
def test_only_an_arm_that_has_won_a_trial_is_given_a_lead(trials):
    problem = Problem(dtype=torch.float64)
    model = problem.model()
    hardly_behind = {"first": partial(SGD, lr=0.1), "second": partial(SGD, lr=0.1001)}
    amos = AMOS(model.named_parameters(), **hardly_behind)
    contest = Contest(model, amos, loss=lambda m: problem.loss(m, 60), plan=PLAN)
    contest.load_state_dict(contest.state_dict() | {"trials": trials})
    for iteration in range(STEPS):
        contest.step(closure_for(problem, model, iteration))
    assert contest.trials == trials + 1
    assert set(amos.assigned.values()) == {Choice.FIRST if trials else Choice.SECOND}


def test_its_price_is_told_in_closures():
    calls = 0
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), first=partial(AdamW), second=partial(SGD, lr=0.1))
    contest = Contest(model, amos, loss=lambda m: problem.loss(m, 60), plan=PLAN)
    for iteration in range(STEPS):
        inner = closure_for(problem, model, iteration)

        def closure(inner=inner):
            nonlocal calls
            calls += 1
            return inner()

        contest.step(closure)
    assert calls == STEPS + PLAN.first + 2 * PLAN.period
    assert contest.extra == PLAN.first + 2 * PLAN.period
    assert contest.iteration == STEPS
    assert amos.state_dict()["amos"]["iteration"] == STEPS


def test_hooks_see_the_steps_of_training_alone():
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), first=partial(AdamW), second=partial(SGD, lr=0.1))
    contest = Contest(model, amos, loss=lambda m: problem.loss(m, 60), plan=PLAN)
    seen = []
    amos.register_step_post_hook(lambda *_: seen.append(contest.iteration))
    for iteration in range(STEPS):
        contest.step(closure_for(problem, model, iteration))
    assert seen == list(range(STEPS))


def test_a_contest_goes_on_after_a_restart_as_if_there_had_been_none():
    plan = ContestPlan(first=3, period=4, growth=12 / 7)  # trials at 3 and 12
    arms = {"first": partial(SGD, lr=1e-9), "second": partial(SGD, lr=0.1)}
    problem = Problem(dtype=torch.float64)

    def build():
        model = problem.model()
        amos = AMOS(model.named_parameters(), **arms)
        return model, amos, Contest(model, amos, loss=lambda m: problem.loss(m, 60), plan=plan)

    whole, _, uninterrupted = build()
    model, amos, contest = build()
    for iteration in range(20):
        uninterrupted.step(closure_for(problem, whole, iteration))
        if iteration == 9:
            saved = model.state_dict(), amos.state_dict(), contest.state_dict()
            model, amos, contest = build()
            for part, state in zip((model, amos, contest), saved, strict=True):
                part.load_state_dict(state)
        contest.step(closure_for(problem, model, iteration))
    assert_same(model, whole)
    assert [d.iteration for d in contest.decisions] == [16]
    assert contest.extra == uninterrupted.extra
    assert amos.assigned == uninterrupted.optimizer.assigned


def test_state_is_copied_for_a_rollback_at_the_first_step_of_each_contestant_only(monkeypatch):
    copied, real = 0, guard.step_or_restore

    def counted(*args):
        nonlocal copied
        copied += 1
        real(*args)

    monkeypatch.setattr(guard, "step_or_restore", counted)
    _, contest = compete(partial(SGD, lr=1e-9), partial(SGD, lr=0.1))
    assert contest.trials == 1
    assert copied == 3


def test_only_amos_can_hold_a_contest():
    model = Problem().model()
    with pytest.raises(ConfigError, match="Got a SGD"):
        Contest(model, SGD(model.parameters(), lr=0.1), loss=lambda m: m)


def test_an_exception_in_the_trial_leaves_amos_as_it_was():
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), first=partial(SGD, lr=0.1), second=partial(AdamW))
    plan = ContestPlan(first=1, period=3)
    contest = Contest(model, amos, loss=lambda m: problem.loss(m, 60), plan=plan)
    contest.step(closure_for(problem, model, 0))
    inner, calls = closure_for(problem, model, 1), 0

    def closure():
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("out of data")
        return inner()

    with pytest.raises(RuntimeError, match="out of data"):
        contest.step(closure)
    assert set(amos.assigned.values()) == {Choice.FIRST}
    expected = alone_float(problem, 2)
    assert_same(model, expected)


def alone_float(problem, steps):
    model = problem.model()
    optimizer = SGD(model.parameters(), lr=0.1)
    for iteration in range(steps):
        optimizer.step(closure_for(problem, model, iteration))
    return model


def test_contest_is_exported():
    assert lipprof.Contest is Contest


def attached_contest(path, second, *, steps=STEPS, plan=PLAN, calibrated=False, **options):
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), first=partial(SGD, lr=1e-3), second=second)
    with lipprof.attach(
        model, amos, path, every=2, loss=lambda m: problem.loss(m, 60), top=1, bottom=0, **options
    ) as profiler:
        loss = {"loss": lambda m: problem.loss(m, 60)}
        contest = Contest(model, amos, **loss, plan=plan, calibrate=calibrated, profiler=profiler)
        for iteration in range(steps):
            contest.step(closure_for(problem, model, iteration))
    return contest


def test_the_log_has_the_outcome_of_a_trial_and_nothing_else(caplog):
    with caplog.at_level("INFO", logger="lipprof"):
        _, contest = compete(partial(SGD, lr=1e-9), partial(SGD, lr=0.1))
    (told,) = caplog.messages
    assert told == f"iteration 7: second-order: {contest.decisions[0].reason(0)}"


def test_the_run_file_has_the_trials_and_what_they_moved(tmp_path):
    contest = attached_contest(tmp_path / "run.h5", partial(SGD, lr=0.2))
    with lipprof.open_run(tmp_path / "run.h5") as run:
        (trial,) = run.trials
        assert (trial.iteration, trial.num_gradients) == (7, PLAN.first + 2 * PLAN.period)
        assert (trial.incumbent, trial.winner) == (Choice.FIRST, Choice.SECOND)
        assert trial.second_loss < trial.first_loss
        assert trial.second_average < trial.first_average
        assert trial.reason == contest.decisions[0].reason(0)
        assert 0 < trial.seconds <= contest.seconds
        switches = run.switches()
        assert {switch.name for switch in switches} == set(run.tensor_names)
        assert {switch.reason for switch in switches} == {trial.reason}
        assert {switch.iteration for switch in switches} == {8}, "the measurement after it"


def test_under_a_contest_the_recommendation_is_not_followed(tmp_path):
    contest = attached_contest(tmp_path / "run.h5", partial(SGD, lr=1e-9), rule="random(share=0.5)")
    assert set(contest.optimizer.assigned.values()) == {Choice.FIRST}
    with lipprof.open_run(tmp_path / "run.h5") as run:
        assert Choice.SECOND in run["recommendation"][-1]
        assert run.switches() == []
        assert run.trials[0].winner is Choice.FIRST


def test_a_resumed_run_has_each_trial_once(tmp_path):
    path = tmp_path / "run.h5"
    attached_contest(path, partial(SGD, lr=0.2))
    attached_contest(path, partial(SGD, lr=0.2), resume=True)
    with lipprof.open_run(path) as run:
        assert len(run.trials) == 1


def test_the_profiler_of_another_optimizer_is_refused(tmp_path):
    problem = Problem()
    model, other = problem.model(), problem.model()
    amos = AMOS(model.named_parameters(), first=partial(AdamW), second=partial(SGD, lr=0.1))
    with (
        lipprof.attach(other, SGD(other.parameters(), lr=0.1), tmp_path / "run.h5") as profiler,
        pytest.raises(ConfigError, match="another optimizer"),
    ):
        Contest(model, amos, loss=lambda m: problem.loss(m, 60), profiler=profiler)


def test_a_trial_explains_no_switch_but_those_right_after_it(tmp_path):
    path, problem = tmp_path / "run.h5", Problem()
    model = problem.model()
    arms = {"first": partial(SGD, lr=1e-3), "second": partial(SGD, lr=0.2)}
    amos = AMOS(model.named_parameters(), **arms)
    loss = {"loss": lambda m: problem.loss(m, 60), "every": 2, "top": 1, "bottom": 0}
    with lipprof.attach(model, amos, path, **loss) as profiler:
        contest = Contest(model, amos, loss=loss["loss"], plan=PLAN, profiler=profiler)
        for iteration in range(STEPS):
            contest.step(closure_for(problem, model, iteration))
        state = profiler.state_dict()
    for share in (1.0, 0.0):  # resumed without a contest: all to the first optimizer, and back
        options = {"rule": f"random(share={share})", "dwell": 1, "resume": True}
        with lipprof.attach(model, amos, path, **loss, **options) as profiler:
            profiler.load_state_dict(state)
            for iteration in range(10):
                amos.step(closure_for(problem, model, iteration))
            state = profiler.state_dict()
    with lipprof.open_run(path) as run:
        (trial,) = run.trials
        again = [s for s in run.switches() if s.to is Choice.SECOND and s.iteration > 8]
        assert again, "it moved back"
        assert trial.reason not in {switch.reason for switch in again}


# --------------------------------------------------------------------------- calibrated

FOUND = 100  # iterations until both learning rates are
CALIBRATED = ContestPlan(first=5, period=5)


def calibrated_alone(first, second, start, steps):
    """AMOS with all on one side, calibrated without a contest."""
    problem = Problem(dtype=torch.float64)
    model = problem.model()
    amos = AMOS(model.named_parameters(), first=first, second=second, start=start)
    calibration = lipprof.calibrate(model, amos, loss=lambda m: problem.loss(m, 60))
    for iteration in range(steps):
        amos.step(closure_for(problem, model, iteration))
    return model, calibration


@pytest.mark.parametrize("winner", [Choice.FIRST, Choice.SECOND])
def test_the_winner_is_calibrated_as_if_it_had_been_alone(winner):
    arms = {"first": partial(AdamW, lr=1e-2), "second": partial(SGD, lr=1e-3)}
    model, contest = compete(
        **arms, plan=CALIBRATED, calibrate=True, steps=FOUND, kind=decided_for(winner)
    )
    assert set(contest.optimizer.assigned.values()) == {winner}
    expected, calibration = calibrated_alone(
        **arms, start="first" if winner is Choice.FIRST else "second", steps=FOUND
    )
    assert_same(model, expected)
    mine = [replace(r, seconds=0.0) for r in contest.calibration.trace]
    assert mine == [replace(r, seconds=0.0) for r in calibration.trace]


def test_a_trial_waits_for_learning_rates_that_still_grow():
    _, contest = compete(
        partial(AdamW, lr=1e-3), partial(SGD, lr=1e-4), plan=CALIBRATED, calibrate=True, steps=99
    )
    (decision,) = contest.decisions
    assert decision.iteration > CALIBRATED.period
    assert not contest.calibration.growing
    assert decision.iteration >= contest.calibration.trace[-1].iteration


def test_what_calibration_costs_is_counted_for_both():
    gradients, problem = 0, Problem(dtype=torch.float64)
    model = problem.model()

    def probe_loss(m):
        nonlocal gradients
        gradients += torch.is_grad_enabled()
        return problem.loss(m, 60)

    arms = {"first": partial(AdamW, lr=1e-3), "second": partial(SGD, lr=1e-2)}
    amos = AMOS(model.named_parameters(), **arms)
    contest = Contest(model, amos, loss=probe_loss, plan=CALIBRATED, calibrate=True)
    seen = []
    for iteration in range(FOUND):
        contest.step(closure_for(problem, model, iteration))
        seen.append((contest.probe_gradients, contest.seconds))
        assert contest.probe_gradients == gradients
    assert contest.probe_gradients > contest.calibration.num_gradients > 0
    assert seen == sorted(seen), "never falls"


def test_a_calibrated_contest_goes_on_after_a_restart():
    problem = Problem(dtype=torch.float64)
    arms = {"first": partial(AdamW, lr=1e-3), "second": partial(SGD, lr=1e-2)}

    def build(**options):
        model = problem.model()
        amos = AMOS(model.named_parameters(), **arms)
        loss = {"loss": lambda m: problem.loss(m, 60)}
        return model, amos, Contest(model, amos, **loss, plan=CALIBRATED, **options)

    whole = build(calibrate=True)
    for iteration in range(FOUND):
        whole[2].step(closure_for(problem, whole[0], iteration))
    assert whole[2].trials == 1
    resumed = build(calibrate=True)
    for mine, saved in zip(resumed, whole, strict=True):
        mine.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert resumed[2].probe_gradients == whole[2].probe_gradients
    for iteration in range(FOUND, FOUND + 5):
        for model, _, contest in (whole, resumed):
            contest.step(closure_for(problem, model, iteration))
    assert_same(resumed[0], whole[0])
    with pytest.raises(ConfigError, match="build it as it was"):
        build()[2].load_state_dict(whole[2].state_dict())


def test_learning_rates_are_the_scheduled_ones_after_closing():
    _, contest = compete(partial(AdamW, lr=1e-3), partial(SGD, lr=1e-2), calibrate=True, steps=99)
    rates = []
    for optimizer in contest.optimizer.optimizers:
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    problem, model = Problem(dtype=torch.float64), contest.model
    contest.step(closure_for(problem, model, 0))
    assert rates.pop() not in {1e-3, 1e-2}
    contest.close()
    contest.step(closure_for(problem, model, 0))
    assert rates.pop() in {1e-3, 1e-2}


def test_the_run_file_has_the_readings_of_the_winner(tmp_path):
    contest = attached_contest(
        tmp_path / "run.h5", partial(SGD, lr=0.2), steps=FOUND, plan=CALIBRATED, calibrated=True
    )
    with lipprof.open_run(tmp_path / "run.h5") as run:
        assert run.calibration == contest.calibration.trace
        (trial,) = run.trials
        assert trial.num_gradients == trial.iteration + CALIBRATED.period


def test_measurements_tell_the_learning_rate_that_the_contest_found(tmp_path):
    problem = Problem()
    model = problem.model()
    arms = {"first": partial(SGD, lr=1e-3), "second": partial(SGD, lr=0.2)}
    amos = AMOS(model.named_parameters(), **arms, eligible=lambda _, p: p.ndim == 2)
    loss = {"loss": lambda m: problem.loss(m, 60)}
    with lipprof.attach(
        model, amos, tmp_path / "run.h5", every=FOUND - 1, top=1, bottom=0, **loss
    ) as profiler:
        contest = Contest(model, amos, **loss, plan=CALIBRATED, calibrate=True, profiler=profiler)
        for iteration in range(FOUND):
            contest.step(closure_for(problem, model, iteration))
    with lipprof.open_run(tmp_path / "run.h5") as run:
        assert contest.trials == 1
        assert run["learning_rate"][-1] == pytest.approx(1e-3 * contest.calibration.factor)
        assert contest.calibration.factor != 1


def test_a_profiler_that_calibrates_too_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="without calibrate=True"):
        attached_contest(tmp_path / "run.h5", partial(SGD, lr=0.2), calibrated=True, calibrate=True)
