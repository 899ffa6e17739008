"""Trials of AMOS's arms: neither disturbs the other, and the better goes on."""

import copy
import io
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

import lipprof
from lipprof import AMOS, Choice, Contest, ContestPlan, Sophia
from lipprof.advice import Entry
from lipprof.errors import ConfigError
from lipprof.optim import guard
from lipprof.record import SOURCES

from ..optim.problems import Problem

PLAN = ContestPlan(start=3, period=4)
FIRST, SECOND = Entry(Choice.FIRST), Entry(Choice.SECOND)
ARMS = {"first": partial(AdamW, lr=1e-2), "second": partial(SGD, lr=1e-3)}
STEPS = 10


def price(plan, entries):
    """Closures of all but the one that trains: one a step before the trial, within it two."""
    return (entries - 1) * (plan.start + 2 * plan.period)


def closure_for(problem, model, iteration):
    def closure():
        model.zero_grad()
        loss = problem.loss(model, iteration)
        loss.backward()
        return loss

    return closure


def decided_for(entry):
    """A contest that one entry wins whatever happens."""

    class Decided(Contest):
        def _winner(self, outcome):
            assert entry in outcome.losses
            return entry

    return Decided


def compete(first, second, *, steps=STEPS, plan=PLAN, calibrate=False, kind=Contest, **options):
    problem = Problem(dtype=torch.float64)
    model = problem.model()
    amos = AMOS(model.named_parameters(), first=first, second=second, **options)
    loss = {"loss": lambda m: problem.loss(m, 60)}
    contest = kind(model, amos, **loss, plan=plan, calibrate=calibrate)
    for iteration in range(steps):
        amos.step(closure_for(problem, model, iteration))
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
    assert contest.outcome.winner == contest.entry


@pytest.mark.parametrize("plan", [PLAN, ContestPlan(start=1, period=5)])
@pytest.mark.parametrize(
    ("first", "second", "side"),
    [
        (partial(AdamW, lr=1e-2), partial(SGD, lr=1e-9), Choice.FIRST),
        (partial(SGD, lr=1e-9), partial(SGD, lr=0.1), Choice.SECOND),
    ],
)
def test_the_winner_trains_as_if_it_had_been_alone(plan, first, second, side):
    model, contest = compete(first, second, plan=plan)
    end = plan.start + plan.period
    assert contest.entry == Entry(side)
    assert {s.iteration for s in contest.optimizer.switches} <= {end}
    assert set(contest.optimizer.assigned.values()) == {side}
    assert_same(model, alone(first if side is Choice.FIRST else second))


def test_what_decides_starts_from_where_the_first_arm_is():
    first, second = partial(SGD, lr=0.05), partial(SGD, lr=0.1)
    _, contest = compete(first, second)
    from_common_ground = alone(second, 7, model=alone(first, PLAN.start), start=PLAN.start)
    problem = Problem(dtype=torch.float64)
    losses = contest.outcome.losses
    assert losses[SECOND].end == pytest.approx(problem.loss(from_common_ground, 60).item(), 1e-12)
    assert losses[FIRST].end == pytest.approx(problem.loss(alone(first, 7), 60).item(), 1e-12)


def test_averages_are_over_the_second_half_of_the_trial():
    first, second = partial(SGD, lr=0.05), partial(SGD, lr=0.1)
    _, contest = compete(first, second)
    problem = Problem(dtype=torch.float64)
    for entry, build in ((FIRST, first), (SECOND, second)):
        common = alone(first, PLAN.start)
        late = [alone(build, n, model=copy.deepcopy(common), start=PLAN.start) for n in (6, 7)]
        with torch.no_grad():
            for mine, *both in zip(
                common.parameters(), *(m.parameters() for m in late), strict=True
            ):
                mine.copy_(sum(both) / 2)
        expected = problem.loss(common, 60).item()
        assert contest.outcome.losses[entry].average == pytest.approx(expected, 1e-12)


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


def built(problem, arms, kind=Contest, **options):
    model = problem.model()
    amos = AMOS(model.named_parameters(), **arms)
    return model, amos, kind(model, amos, loss=lambda m: problem.loss(m, 60), **options)


def reloaded(old, build):
    """The same in another process: saved and loaded with nothing but plain types and tensors."""
    file = io.BytesIO()
    torch.save([part.state_dict() for part in old], file)
    file.seek(0)
    new = build()
    for part, state in zip(new, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    return new


@pytest.mark.parametrize("end", [0, 1, 2, 3, 4, 6, 7, 9], ids=lambda n: f"after {n}")
def test_a_contest_goes_on_after_a_restart_as_if_there_had_been_none(end):
    problem = Problem(dtype=torch.float64)
    arms = {"first": partial(AdamW, lr=1e-6), "second": partial(SGD, lr=0.1, momentum=0.9)}

    def build():
        return built(problem, arms, plan=PLAN)

    whole, parts = build(), build()
    for iteration in range(12):
        if iteration == end:
            parts = reloaded(parts, build)
        for model, _, contest in (whole, parts):
            contest.step(closure_for(problem, model, iteration))
    assert_same(parts[0], whole[0])
    assert parts[2].outcome == whole[2].outcome
    assert parts[2].outcome.winner == SECOND
    assert parts[2].extra == whole[2].extra
    assert parts[1].assigned == whole[1].assigned


def test_a_first_arm_that_was_away_may_come_back():
    first, second = partial(AdamW, lr=1e-2), partial(SGD, lr=1e-9)
    _, contest = compete(first, second, start="second")
    assert set(contest.optimizer.assigned.values()) == {Choice.FIRST}


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
    assert calls == STEPS + price(PLAN, 2)
    assert contest.extra == price(PLAN, 2)
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
    assert seen == list(range(1, STEPS + 1))


def test_state_is_copied_for_a_rollback_at_the_first_step_of_each_contestant_only(monkeypatch):
    copied, real = 0, guard.step_or_restore

    def counted(*args):
        nonlocal copied
        copied += 1
        real(*args)

    monkeypatch.setattr(guard, "step_or_restore", counted)
    _, contest = compete(partial(SGD, lr=1e-9), partial(SGD, lr=0.1))
    assert contest.entry == SECOND
    assert copied == 3


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_those_of_training_after_every_step(set_to_none):
    problem = Problem(dtype=torch.float64)
    model, amos, _ = built(problem, ARMS, plan=PLAN)
    alone = problem.model()
    optimizer = ARMS["first"](alone.parameters())
    for iteration in range(6):
        for mine, stepping in ((model, amos), (alone, optimizer)):

            def closure(mine=mine, iteration=iteration):
                mine.zero_grad(set_to_none=set_to_none)
                loss = problem.loss(mine, iteration)
                loss.backward()
                return loss

            stepping.step(closure)
        for p, q in zip(model.parameters(), alone.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)


def noisy_model():
    torch.manual_seed(3)
    layers = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.ReLU(), nn.Linear(6, 3)
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("side", [Choice.FIRST, Choice.SECOND])
def test_dropout_and_running_statistics_are_those_of_the_winner_alone(side):
    problem = Problem(dtype=torch.float64)
    arms = {"first": partial(AdamW, lr=1e-2), "second": partial(SGD, lr=0.1)}
    contested = noisy_model()
    amos = AMOS(contested.named_parameters(), **arms)
    loss = {"loss": lambda m: problem.loss(m, 60)}
    contest = decided_for(Entry(side))(contested, amos, **loss, plan=PLAN)
    torch.manual_seed(5)
    for iteration in range(STEPS):
        contest.step(closure_for(problem, contested, iteration))
    drawn = torch.rand(1)
    model = noisy_model()
    torch.manual_seed(5)
    alone(arms["first" if side is Choice.FIRST else "second"], model=model)
    assert drawn == torch.rand(1), "training goes on with the same random numbers"
    for mine, theirs in zip(
        contested.state_dict().values(), model.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)


def fed_by_sampling(problem, model, optimizer, iteration):
    """Feeds Sophia the gradient of sampled labels, from the global generator."""

    def observe():
        model.zero_grad()
        logits = model(problem.inputs[iteration])
        labels = torch.multinomial(logits.detach().softmax(-1), 1).squeeze(1)
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.observe_sampled_gradient(batch_size=len(labels))

    return observe


@pytest.mark.parametrize("side", [Choice.FIRST, Choice.SECOND])
def test_every_contestant_is_fed_curvature_where_it_is(side):
    problem = Problem(dtype=torch.float64)
    arms = {
        "first": partial(AdamW, lr=1e-2),
        "second": partial(Sophia, lr=1e-2, estimator="gnb", update_every=2),
    }

    def trained(stepping, model, amos):
        torch.manual_seed(5)
        for iteration in range(STEPS):
            observe = fed_by_sampling(problem, model, amos, iteration)
            stepping(closure_for(problem, model, iteration), observe)

    model = problem.model()
    amos = AMOS(model.named_parameters(), **arms)
    loss = {"loss": lambda m: problem.loss(m, 60)}
    contest = decided_for(Entry(side))(model, amos, **loss, plan=PLAN)
    trained(contest.step, model, amos)

    expected = problem.model()
    start = "first" if side is Choice.FIRST else "second"
    alone = AMOS(
        expected.named_parameters(),
        **arms,
        start=start,
        rule=f"random(share={float(start == 'first')})",
    )

    def step(closure, observe):
        if alone.curvature_due:
            observe()
        alone.step(closure)

    trained(step, expected, alone)
    assert_same(model, expected)


def test_only_amos_can_hold_a_contest():
    model = Problem().model()
    with pytest.raises(ConfigError, match="Got a SGD"):
        Contest(model, SGD(model.parameters(), lr=0.1), loss=lambda m: m)


def test_a_step_without_closure_is_refused_until_the_contest_is_decided():
    problem = Problem(dtype=torch.float64)
    model, amos, contest = built(problem, ARMS, plan=PLAN)
    with pytest.raises(ConfigError, match=r"optimizer\.step\(closure\)"):
        amos.step()
    for iteration in range(7):
        contest.step(closure_for(problem, model, iteration))
    assert contest.outcome is not None
    amos.step()
    assert contest.iteration == 8


def test_measurements_of_the_loop_s_own_step_are_those_without_a_contest(tmp_path):
    series = []
    for contested in (False, True):
        problem = Problem()
        model = problem.model()
        amos = AMOS(model.named_parameters(), **ARMS, rule="random(share=1.0)")
        path, rule = tmp_path / f"{contested}.h5", amos.rule
        with lipprof.attach(model, amos, path, every=2, top=1, rule=rule, strict=True) as profiler:
            if contested:
                loss = {"loss": lambda m, problem=problem: problem.loss(m, 60)}
                decided_for(FIRST)(model, amos, **loss, plan=PLAN, profiler=profiler)
            for iteration in range(STEPS):
                amos.step(closure_for(problem, model, iteration))
        with lipprof.open_run(path) as run:
            assert set(run["source"]) == {SOURCES.index("replay")}
            series.append(run["eigenvalue"])
    assert (series[0] == series[1]).all()


def test_an_exception_in_the_trial_leaves_amos_as_it_was():
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), first=partial(SGD, lr=0.1), second=partial(AdamW))
    plan = ContestPlan(start=2, period=3)
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
    assert told == f"iteration 7: the second: {contest.outcome.reason}"


def test_the_run_file_has_the_trials_and_what_they_moved(tmp_path):
    contest = attached_contest(tmp_path / "run.h5", partial(SGD, lr=0.2))
    with lipprof.open_run(tmp_path / "run.h5") as run:
        (trial,) = run.trials
        assert (trial.iteration, trial.num_gradients) == (7, price(PLAN, 2))
        assert (trial.incumbent, trial.winner) == (Choice.FIRST, Choice.SECOND)
        assert trial.second_loss < trial.first_loss
        assert trial.second_average < trial.first_average
        assert trial.losses == contest.outcome.losses
        assert trial.before == contest.outcome.before
        assert not trial.winner_calibrated
        assert 0 < trial.seconds == contest.seconds
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
CALIBRATED = ContestPlan(start=5, period=5)
ENTRIES = [Entry(side, how) for how in (False, True) for side in (Choice.FIRST, Choice.SECOND)]


def trained_alone(entry, steps):
    """AMOS with all on the side of one entry, without a contest."""
    problem = Problem(dtype=torch.float64)
    model = problem.model()
    start = "first" if entry.side is Choice.FIRST else "second"
    amos = AMOS(
        model.named_parameters(),
        **ARMS,
        start=start,
        rule=f"random(share={float(start == 'first')})",
    )
    calibration = None
    if entry.calibrated:
        calibration = lipprof.calibrate(model, amos, loss=lambda m: problem.loss(m, 60))
    for iteration in range(steps):
        amos.step(closure_for(problem, model, iteration))
    return model, calibration


@pytest.mark.parametrize("winner", ENTRIES, ids=lambda entry: entry.label)
def test_the_winner_trains_as_if_it_had_been_alone_calibrated_or_not(winner):
    model, contest = compete(
        **ARMS, plan=CALIBRATED, calibrate=True, steps=FOUND, kind=decided_for(winner)
    )
    assert set(contest.optimizer.assigned.values()) == {winner.side}
    expected, calibration = trained_alone(winner, FOUND)
    assert_same(model, expected)
    assert (contest.calibration is None) == (calibration is None)
    if calibration is not None:
        mine = [replace(r, seconds=0.0) for r in contest.calibration.trace]
        assert mine == [replace(r, seconds=0.0) for r in calibration.trace]
        assert contest.verdicts[winner.label] == calibration.verdicts


def test_a_bad_given_learning_rate_is_replaced():
    arms = {"first": partial(SGD, lr=1e-3), "second": partial(SGD, lr=1e-4)}
    _, contest = compete(**arms, plan=CALIBRATED, calibrate=True, steps=170)
    assert contest.entry.calibrated, contest.outcome.reason
    lowest = min(losses.end for losses in contest.outcome.losses.values())
    assert contest.outcome.losses[contest.entry].end == lowest


def test_a_trial_waits_for_learning_rates_that_still_grow():
    _, contest = compete(
        **ARMS, plan=CALIBRATED, calibrate=True, steps=99, kind=decided_for(ENTRIES[2])
    )
    assert not contest.calibration.growing
    ended = contest.extra - price(CALIBRATED, 4)
    assert ended > 0
    assert ended % 3 == 0, "three racers"
    found = contest.calibration.trace[-1].iteration
    assert CALIBRATED.start + ended // 3 >= found


def test_what_calibration_costs_is_counted_for_both():
    gradients, problem = 0, Problem(dtype=torch.float64)

    def probe_loss(m):
        nonlocal gradients
        gradients += torch.is_grad_enabled()
        return problem.loss(m, 60)

    model = problem.model()
    amos = AMOS(model.named_parameters(), **ARMS)
    contest = Contest(model, amos, loss=probe_loss, plan=CALIBRATED, calibrate=True)
    seen = []
    for iteration in range(FOUND):
        contest.step(closure_for(problem, model, iteration))
        seen.append((contest.probe_gradients, contest.seconds))
        assert contest.probe_gradients == gradients
    assert contest.outcome is not None
    assert gradients > 0
    assert seen == sorted(seen), "never falls"


@pytest.mark.parametrize("end", [3, 60, 95], ids=lambda n: f"after {n}")
def test_a_calibrated_contest_goes_on_after_a_restart(end):
    problem = Problem(dtype=torch.float64)

    def build(calibrate=True):
        kind = decided_for(ENTRIES[3])
        return built(problem, ARMS, kind, plan=CALIBRATED, calibrate=calibrate)

    whole, parts = build(), build()
    for iteration in range(FOUND):
        if iteration == end:
            parts = reloaded(parts, build)
        for model, _, contest in (whole, parts):
            contest.step(closure_for(problem, model, iteration))
    assert whole[2].entry == ENTRIES[3]
    assert_same(parts[0], whole[0])
    assert parts[2].entry == whole[2].entry
    assert parts[2].probe_gradients == whole[2].probe_gradients
    with pytest.raises(ConfigError, match="build it as it was"):
        build(calibrate=False)[2].load_state_dict(whole[2].state_dict())


def test_learning_rates_are_the_scheduled_ones_after_closing():
    _, contest = compete(**ARMS, calibrate=True, steps=99, kind=decided_for(ENTRIES[3]))
    rates = []
    for optimizer in contest.optimizer.optimizers:
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    problem, model = Problem(dtype=torch.float64), contest.model
    contest.step(closure_for(problem, model, 0))
    assert rates.pop() not in {1e-3, 1e-2}
    contest.close()
    contest.step(closure_for(problem, model, 0))
    assert rates.pop() == 1e-3


@pytest.mark.parametrize("winner", ENTRIES, ids=lambda entry: entry.label)
def test_the_run_file_has_the_readings_of_the_winner_and_its_learning_rate(tmp_path, winner):
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), **ARMS, eligible=lambda _, p: p.ndim == 2)
    loss = {"loss": lambda m: problem.loss(m, 60)}
    with lipprof.attach(
        model, amos, tmp_path / "run.h5", every=FOUND - 1, top=1, bottom=0, **loss
    ) as profiler:
        kind, plan = decided_for(winner), CALIBRATED
        contest = kind(model, amos, **loss, plan=plan, calibrate=True, profiler=profiler)
        for iteration in range(FOUND):
            contest.step(closure_for(problem, model, iteration))
    with lipprof.open_run(tmp_path / "run.h5") as run:
        (trial,) = run.trials
        assert (trial.winner, bool(trial.winner_calibrated)) == winner
        assert trial.losses == contest.outcome.losses
        assert trial.before == contest.outcome.before
        assert trial.num_gradients == contest.extra
        found = contest.calibration
        assert run.calibration == (found.trace if found else [])
        factor = found.factor if found else 1.0
        assert run["learning_rate"][-1] == pytest.approx(1e-2 * factor)
        assert (factor != 1) == winner.calibrated


def test_a_profiler_that_calibrates_too_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="without calibrate=True"):
        attached_contest(tmp_path / "run.h5", partial(SGD, lr=0.2), calibrated=True, calibrate=True)
