"""``lipprof.calibrate`` in loops: bowls whose best learning rate is 1, schedulers, resuming."""

import copy
from functools import partial

import pytest
import torch
from torch import nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

import lipprof
from lipprof.advice import Choice, Outcome
from lipprof.errors import ConfigError, NonfiniteError
from lipprof.record import CalibrationReading
from tests.models import problem

SMALL = {"every": 10, "top": 1, "bottom": 0, "diagonal_probes": 2, "stability": False}


class Bowl(nn.Module):
    """Parameters of which the loss is half the squared norm: gradient descent is best at lr 1."""

    def __init__(self, sizes=(6,)):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList(torch.randn(size, generator=generator) for size in sizes)

    def forward(self):
        return sum((weight**2).sum() / 2 for weight in self.weights)


def bowl_loss(model):
    return model()


def train(model, optimizer, iterations, *, loss=bowl_loss, scheduler=None):
    for _ in range(iterations):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def rates_in_use(optimizer):
    """What the learning rate of the first group is inside every step from now on."""
    seen = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(float(o.param_groups[0]["lr"])))
    return seen


# --------------------------------------------------------------------------- what it finds


@pytest.mark.parametrize("start", [1 / 300, 1 / 30, 1 / 3, 4.0, 16.0, 300.0])
def test_too_low_and_too_high_learning_rates_end_at_the_best(start):
    model = Bowl()
    optimizer = optim.SGD(model.parameters(), lr=start)
    with lipprof.calibrate(model, optimizer, loss=bowl_loss) as calibration:
        train(model, optimizer, 100)
        assert calibration.outcomes == (Outcome.FROZEN,)
        assert 0.9 < calibration.factor * start < 1.2
        assert ("too low" if start < 1 else "too high") in calibration.verdicts[0]
    assert bowl_loss(model).item() < 1e-6


@pytest.mark.parametrize("start", [0.6, 1.0, 1.7])
def test_a_good_learning_rate_is_confirmed(start):
    model = Bowl()
    optimizer = optim.SGD(model.parameters(), lr=start)
    calibration = lipprof.calibrate(model, optimizer, loss=bowl_loss)
    train(model, optimizer, 60)
    assert 0.9 < calibration.factor * start < 1.2
    assert "about right" in calibration.verdicts[0]


def test_a_network_trained_from_ten_times_too_low():
    losses = {}
    for calibrated in (False, True):
        torch.manual_seed(0)
        p = problem("mlp", count=64)
        p.model.eval()
        optimizer = optim.Adam(p.model.parameters(), lr=1e-3)
        if calibrated:
            calibration = lipprof.calibrate(p.model, optimizer, loss=p.loss)
        train(p.model, optimizer, 80, loss=p.loss)
        losses[calibrated] = p.loss(p.model).item()
    assert losses[True] < losses[False] - 0.1
    assert calibration.factor > 4
    assert calibration.num_gradients == sum(r.num_gradients for r in calibration.trace)
    assert calibration.num_gradients <= calibration.trace[-1].iteration + 16


def test_groups_keep_their_ratio():
    model = Bowl((3, 3))
    first, second = model.weights
    optimizer = optim.SGD([{"params": [first]}, {"params": [second], "lr": 0.005}], lr=0.01)
    calibration = lipprof.calibrate(model, optimizer, loss=bowl_loss)
    seen = []
    optimizer.register_step_pre_hook(
        lambda o, *_: seen.append([group["lr"] for group in o.param_groups])
    )
    train(model, optimizer, 100)
    assert all(b == pytest.approx(a / 2) for a, b in seen)
    assert calibration.factor > 50


def test_each_side_of_amos_has_its_own_factor():
    model = Bowl((4, 4))
    amos = lipprof.AMOS(
        model.named_parameters(),
        first=partial(optim.SGD, lr=0.02),
        second=partial(optim.SGD, lr=20.0),
        eligible=lambda name, _: name.endswith("1"),
        start="second",
    )
    calibration = lipprof.calibrate(model, amos, loss=bowl_loss)
    train(model, amos, 100)
    assert calibration.outcomes == (Outcome.FROZEN, Outcome.FROZEN)
    first, second = calibration.factors
    assert 0.9 < first * 0.02 < 1.2
    assert 0.9 < second * 20 < 1.2
    assert "too low" in calibration.verdicts[0]
    assert "too high" in calibration.verdicts[1]
    assert {reading.side for reading in calibration.trace} == {0, 1}
    assert bowl_loss(model).item() < 1e-6


def test_a_side_without_tensors_has_not_begun():
    model = Bowl((4, 4))
    sgd = partial(optim.SGD, lr=0.02)
    amos = lipprof.AMOS(model.named_parameters(), first=sgd, second=sgd)
    calibration = lipprof.calibrate(model, amos, loss=bowl_loss)
    train(model, amos, 60)
    assert calibration.outcomes == (Outcome.FROZEN, Outcome.GROWING)
    assert "not begun" in calibration.verdicts[1]


# --------------------------------------------------------------------------- schedulers

SCHEDULERS = {
    "warm-up and decay": lambda o: LambdaLR(o, lambda i: min(i / 5, 1) * 0.99**i),
    "cosine, recursive": lambda o: CosineAnnealingLR(o, 100),
    "one cycle": lambda o: OneCycleLR(o, max_lr=0.05, total_steps=101, cycle_momentum=False),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_meet_only_their_own_values(name):
    schedules, used = [], []
    for calibrated in (False, True):
        model = Bowl()
        optimizer = optim.SGD(model.parameters(), lr=0.02)
        scheduler = SCHEDULERS[name](optimizer)
        if calibrated:
            calibration = lipprof.calibrate(model, optimizer, loss=bowl_loss)
            used = rates_in_use(optimizer)
        own = []
        for _ in range(100):
            own.append(optimizer.param_groups[0]["lr"])
            train(model, optimizer, 1, scheduler=scheduler)
        schedules.append(own)
    assert schedules[0] == schedules[1]
    assert calibration.outcomes == (Outcome.FROZEN,)
    decided = calibration.trace[-1].iteration + 1
    found = calibration.trace[-1].learning_rate
    assert 0.9 < found < 1.2
    for i in range(decided, 100):
        peak = max(schedules[1][: i + 1])
        assert used[i] == pytest.approx(found * schedules[1][i] / peak)


def test_a_schedule_that_begins_at_zero_delays_the_start():
    model = Bowl()
    before = copy.deepcopy(model.state_dict())
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda i: float(i >= 3))
    calibration = lipprof.calibrate(model, optimizer, loss=bowl_loss)
    train(model, optimizer, 3, scheduler=scheduler)
    assert all(torch.equal(a, before[name]) for name, a in model.state_dict().items())
    assert calibration.num_gradients == 0
    assert "not begun" in calibration.verdicts[0]
    train(model, optimizer, 60, scheduler=scheduler)
    assert 0.9 < calibration.factor * 0.1 < 1.2


def test_a_learning_rate_may_be_a_tensor():
    model, rate = Bowl(), torch.tensor(0.1)
    optimizer = optim.SGD(model.parameters(), lr=rate)
    calibration = lipprof.calibrate(model, optimizer, loss=bowl_loss)
    train(model, optimizer, 60)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.1)
    assert 0.9 < calibration.factor * 0.1 < 1.2


# --------------------------------------------------------------------------- leaving alone


@pytest.mark.parametrize("kind", ["mlp", "batchnorm_cnn"])
def test_nothing_else_moves(kind):
    """Random states, buffers, modes and gradients are those of the loop alone at any time."""
    runs = []
    for calibrated in (False, True):
        torch.manual_seed(0)
        p = problem(kind)
        optimizer = optim.SGD(p.model.parameters(), lr=0.01)
        if calibrated:
            lipprof.calibrate(p.model, optimizer, loss=p.loss)
        seen = []
        for iteration in range(6):
            optimizer.zero_grad()
            p.loss(p.model, p.batch(iteration)).backward()
            gradients = [parameter.grad.clone() for parameter in p.model.parameters()]
            optimizer.step()
            after = [parameter.grad for parameter in p.model.parameters()]
            assert all(map(torch.equal, gradients, after))
            tracked = [b.clone() for n, b in p.model.named_buffers() if "tracked" in n]
            flags = [module.training for module in p.model.modules()]
            seen.append((torch.get_rng_state(), tracked, flags))
        runs.append(seen)
    for (state, tracked, flags), (state2, tracked2, flags2) in zip(*runs, strict=True):
        assert torch.equal(state, state2)
        assert all(map(torch.equal, tracked, tracked2))
        assert flags == flags2


def test_a_factor_of_one_is_the_loop_alone_bit_by_bit():
    results = []
    for calibrated in (False, True):
        torch.manual_seed(0)
        p = problem("batchnorm_cnn")
        optimizer = optim.AdamW(p.model.parameters(), lr=0.01)
        scheduler = CosineAnnealingLR(optimizer, 30)
        if calibrated:
            calibration = lipprof.calibrate(p.model, optimizer, loss=p.loss)
            calibration.sides[0].length.outcome = Outcome.FAILED
        for iteration in range(12):
            optimizer.zero_grad()
            p.loss(p.model, p.batch(iteration)).backward()
            optimizer.step()
            scheduler.step()
        results.append(p.model.state_dict())
    assert calibration.num_gradients == 0
    assert all(torch.equal(a, b) for a, b in zip(*map(dict.values, results), strict=True))


def test_a_step_that_raises_leaves_the_learning_rate():
    model = Bowl()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    lipprof.calibrate(model, optimizer, loss=bowl_loss)
    train(model, optimizer, 100)
    used = rates_in_use(optimizer)

    def closure():
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="own"):
        optimizer.step(closure)
    train(model, optimizer, 2)
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert used[0] == used[1] == used[2]


def test_steps_without_gradients_do_not_count():
    model = Bowl()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    calibration = lipprof.calibrate(model, optimizer, loss=bowl_loss)
    for _ in range(30):
        optimizer.step()
    assert "not begun" in calibration.verdicts[0]
    train(model, optimizer, 60)
    assert 0.9 < calibration.factor * 0.1 < 1.2


@pytest.mark.parametrize("cut", [0, 3, 8, 45])
def test_a_resumed_calibration_goes_on_exactly(cut):
    def start():
        model = Bowl((3, 4))
        optimizer = optim.Adam(model.parameters(), lr=1e-3)
        return model, optimizer, lipprof.calibrate(model, optimizer, loss=bowl_loss)

    whole, optimizer, calibration = start()
    train(whole, optimizer, 60)
    model, first, half = start()
    train(model, first, cut)
    saved = copy.deepcopy((model.state_dict(), first.state_dict(), half.state_dict()))
    model, second, rest = start()
    for part, state in zip((model, second, rest), saved, strict=True):
        part.load_state_dict(state)
    train(model, second, 60 - cut)
    assert all(map(torch.equal, whole.parameters(), model.parameters()))
    assert rest.factor == calibration.factor
    assert [r.iteration for r in half.trace + rest.trace] == [
        r.iteration for r in calibration.trace
    ]


# --------------------------------------------------------------------------- bad input


class NoRate(optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure=None):
        return None


def test_optimizers_without_a_step_length_are_refused():
    model = Bowl()
    with pytest.raises(ConfigError, match="NoRate has a parameter group without `lr`"):
        lipprof.calibrate(model, NoRate(model.parameters()), loss=bowl_loss)
    with pytest.raises(ConfigError, match="LBFGS evaluates the loss itself"):
        lipprof.calibrate(model, optim.LBFGS(model.parameters()), loss=bowl_loss)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="mode"):
        lipprof.calibrate(model, optimizer, loss=bowl_loss, mode="test")


def test_attach_wants_a_closure_to_calibrate(tmp_path):
    model = Bowl()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="pass loss="):
        lipprof.attach(model, optimizer, tmp_path / "run.h5", calibrate=True, **SMALL)
    assert not (tmp_path / "run.h5").exists()


def test_a_state_of_another_optimizer_is_refused():
    model = Bowl((2, 2))
    sgd = partial(optim.SGD, lr=0.1)
    amos = lipprof.calibrate(
        model, lipprof.AMOS(model.named_parameters(), sgd, sgd), loss=bowl_loss
    )
    alone = lipprof.calibrate(model, sgd(model.parameters()), loss=bowl_loss)
    with pytest.raises(ConfigError, match="2 factors"):
        alone.load_state_dict(amos.state_dict())


def test_a_probe_that_is_nan_is_an_error():
    model = Bowl()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    lipprof.calibrate(model, optimizer, loss=lambda model: model() * float("nan"))
    with pytest.raises(NonfiniteError, match="nan"):
        train(model, optimizer, 1)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_loss_that_turns_nan_on_the_way_undoes_that_step():
    def cliff(model):
        return model.weights[0].sum() + 0 * (model.weights[0] + 40).log().sum()

    model = Bowl()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    calibration = lipprof.calibrate(model, optimizer, loss=cliff)
    train(model, optimizer, 150, loss=cliff)
    assert calibration.outcomes == (Outcome.DIVERGED,)
    assert "NaN" in calibration.verdicts[0]
    assert calibration.trace[-1].room == 0


# --------------------------------------------------------------------------- attached


def test_attached_it_is_recorded_and_reported(tmp_path):
    from lipprof.report.calibration import calibration_figure, calibration_sentence

    path, model = tmp_path / "run.h5", Bowl()
    optimizer = optim.SGD(model.parameters(), lr=0.02)
    used = rates_in_use(optimizer)
    with lipprof.attach(
        model, optimizer, path, loss=bowl_loss, calibrate=True, strict=True, **SMALL
    ) as prof:
        used = rates_in_use(optimizer)
        train(model, optimizer, 60)
    with lipprof.open_run(path) as run:
        readings = run.calibration
        assert readings == prof.calibration.trace
        assert all(isinstance(reading, CalibrationReading) for reading in readings)
        assert readings[0].iteration == 0
        assert readings[-1].outcome is Outcome.FROZEN
        assert 0.9 < readings[-1].learning_rate < 1.2
        assert run["learning_rate"].tolist() == pytest.approx(used[::10])
        sentence = calibration_sentence(readings)
        assert "too low" in sentence
        assert f"{prof.calibration.num_gradients} gradients" in sentence
        figure = calibration_figure(run)
        assert list(figure.data[0].y) == [reading.factor for reading in readings]
    assert optimizer.param_groups[0]["lr"] == 0.02


def test_attached_to_an_amos_both_sides_are_calibrated_and_recorded(tmp_path):
    path, model = tmp_path / "run.h5", Bowl((3, 3))
    amos = lipprof.AMOS(
        model.named_parameters(),
        first=partial(optim.SGD, lr=0.02),
        second=partial(optim.SGD, lr=8.0),
        rule="random(share=0.0)",
        start="second",
        eligible=lambda name, _: name == "weights.1",
    )
    options = {"rule": "random(share=0.0)", "loss": bowl_loss, "calibrate": True, "strict": True}
    with lipprof.attach(model, amos, path, **options, **SMALL) as prof:
        train(model, amos, 80)
    with lipprof.open_run(path) as run:
        readings = run.calibration
        assert readings == prof.calibration.trace
        for side in (0, 1):
            last = [reading for reading in readings if reading.side == side][-1]
            assert last.outcome is Outcome.FROZEN
            assert 0.8 < last.learning_rate < 1.2
        assert {Choice.FIRST, Choice.SECOND} == set(run["assigned"][-1].tolist())
    assert bowl_loss(model).item() < 1e-6


def test_attached_a_nan_probe_leaves_training_as_it_was(tmp_path, caplog):
    results = []
    for calibrated in (False, True):
        model = Bowl()
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        with lipprof.attach(
            model, optimizer, tmp_path / "run.h5", loss=lambda model: model() * float("nan"),
            calibrate=calibrated, **SMALL,
        ) as prof:  # fmt: skip
            train(model, optimizer, 5)
        results.append(list(model.parameters()))
    assert prof.calibration.outcomes == (Outcome.FAILED,)
    assert "not calibrated" in caplog.text
    assert all(map(torch.equal, *results))


def test_a_profiler_saves_its_calibration(tmp_path):
    model = Bowl()
    optimizer = optim.SGD(model.parameters(), lr=0.02)
    options = {"loss": bowl_loss, "calibrate": True, **SMALL}
    with lipprof.attach(model, optimizer, tmp_path / "a.h5", **options) as prof:
        train(model, optimizer, 60)
        state = prof.state_dict()
    with lipprof.attach(model, optimizer, tmp_path / "a.h5", resume=True, **options) as prof:
        prof.load_state_dict(state)
        train(model, optimizer, 1)
        assert prof.calibration.outcomes == (Outcome.FROZEN,)
        assert 0.9 < prof.calibration.factor * 0.02 < 1.2
    with lipprof.open_run(tmp_path / "a.h5") as run:
        assert run.calibration[-1].outcome is Outcome.FROZEN
