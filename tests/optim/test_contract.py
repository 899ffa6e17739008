"""What holds for AMOS over any two optimizers, and for ELMO and FOSI over any base."""

import itertools
from functools import partial

import pytest
import torch
from torch import optim

from lipprof.advice import Choice
from lipprof.lipschitz import Eigenspaces
from lipprof.optim import AMOS, ELMO, FOSI, Sophia

from .problems import Problem, everything, parameters_equal, recommend

FACTORIES = {
    "sgd": partial(optim.SGD, lr=0.05),
    "momentum": partial(optim.SGD, lr=0.02, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "adamw": partial(optim.AdamW, lr=0.01),
    "amsgrad": partial(optim.Adam, lr=0.01, amsgrad=True),
    "sophia": partial(Sophia, lr=0.01),
}
if hasattr(optim, "Muon"):
    FACTORIES["muon"] = partial(optim.Muon, lr=0.02)

PAIRS = [pair for pair in itertools.product(FACTORIES, repeat=2) if pair[0] != "muon"]
PAIRS += [("adagrad", "foreach"), ("foreach", "adagrad")]
FACTORIES["adagrad"] = partial(optim.Adagrad, lr=0.05, initial_accumulator_value=0.1)
FACTORIES["foreach"] = partial(optim.AdamW, lr=0.01, foreach=True)

pairs = pytest.mark.parametrize(("first", "second"), PAIRS, ids=["-".join(pair) for pair in PAIRS])


def plain(model, factory, *, matrices_only=False, rest=None):
    """The optimizers a user would write without AMOS."""
    matrices = [p for p in model.parameters() if p.ndim == 2 or not matrices_only]
    others = [p for p in model.parameters() if p.ndim != 2 and matrices_only]
    return [factory(matrices)] + ([rest(others)] if others else [])


@pairs
@pytest.mark.parametrize("idle_state", ["warm", "restart"])
def test_all_on_one_side_is_that_optimizer_alone(first, second, idle_state):
    problem = Problem()
    for side in ("first", "second"):
        model, reference = problem.model(), problem.model()
        amos = AMOS(
            model.named_parameters(),
            FACTORIES[first],
            FACTORIES[second],
            start=side,
            idle_state=idle_state,
        )
        muon = side == "second" and second == "muon"
        alone = plain(
            reference,
            FACTORIES[second if side == "second" else first],
            matrices_only=muon,
            rest=FACTORIES[first],
        )
        problem.train(model, amos, range(6))
        problem.train(reference, alone, range(6))
        assert parameters_equal(model, reference)


@pairs
def test_static_split_is_two_separate_optimizers(first, second):
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos = AMOS(
        model.named_parameters(),
        FACTORIES[first],
        FACTORIES[second],
        eligible=lambda name, _: name == "2.weight",
        start="second",
    )
    named = dict(reference.named_parameters())
    second_params = [named.pop("2.weight")]
    problem.train(model, amos, range(6))
    problem.train(
        reference, [FACTORIES[first](named.values()), FACTORIES[second](second_params)], range(6)
    )
    assert parameters_equal(model, reference)


@pairs
@pytest.mark.parametrize("idle_state", ["warm", "restart"])
def test_survives_switches_and_resumes_bitwise(first, second, idle_state, tmp_path):
    problem = Problem()

    def build(model):
        return AMOS(
            model.named_parameters(), FACTORIES[first], FACTORIES[second], idle_state=idle_state
        )

    def drive(model, amos, iterations):
        def switch(iteration):
            names = [name for name, _ in model.named_parameters()]
            side = [Choice.SECOND, Choice.FIRST, Choice.NONE]
            amos.follow(recommend({n: side[(iteration + i) // 2 % 3] for i, n in enumerate(names)}))

        problem.train(model, amos, iterations, switch)

    straight, stopped = problem.model(), problem.model()
    amos = build(straight)
    drive(straight, amos, range(9))

    before = build(stopped)
    drive(stopped, before, range(5))
    torch.save(before.state_dict(), tmp_path / "state.pt")
    resumed = build(stopped)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.assigned == before.assigned
    drive(stopped, resumed, range(5, 9))

    assert len(amos.switches) > 3
    assert resumed.switches == amos.switches
    assert parameters_equal(straight, stopped)
    assert all(p.isfinite().all() for p in straight.parameters())


@pairs
def test_unused_parameters_and_nan_gradients_are_left_to_the_optimizers(first, second):
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), FACTORIES[first], FACTORIES[second], check_finite=False)
    amos.follow(everything(model, Choice.SECOND))
    frozen = model[2].bias
    before = frozen.detach().clone()

    def spoil(iteration):
        frozen.grad = None
        model[0].weight.grad[0, 0] = torch.nan

    problem.train(model, amos, range(1), spoil)
    assert torch.equal(frozen, before)
    assert model[0].weight.isnan().any()


# --- ELMO and FOSI over any base -------------------------------------------------------------

bases = pytest.mark.parametrize("base", [name for name in FACTORIES if name != "muon"])
kinds = pytest.mark.parametrize("kind", [ELMO, FOSI])


def observe(model, optimizer, iteration):
    """Hand over eigenspaces that a seed has made up."""
    parameters = tuple(model.parameters())
    n = sum(p.numel() for p in parameters)
    generator = torch.Generator().manual_seed(iteration)
    basis = torch.linalg.qr(torch.randn(n, 3, generator=generator)).Q.T
    numbers = torch.tensor([[5.0, 1.0, -0.5], [2.0, torch.nan, 1.0]], dtype=torch.float64)
    optimizer.observe_eigenspaces(Eigenspaces(parameters, basis, *numbers))


@bases
@kinds
def test_before_any_eigenspaces_it_is_the_base_alone(kind, base):
    problem = Problem()
    model, reference = problem.model(), problem.model()
    problem.train(model, kind(model.named_parameters(), FACTORIES[base]), range(6))
    problem.train(reference, FACTORIES[base](reference.parameters()), range(6))
    assert parameters_equal(model, reference)


@bases
@kinds
def test_resumes_in_its_eigenspaces_bitwise(kind, base, tmp_path):
    problem = Problem()

    def drive(model, optimizer, iterations):
        def maybe(iteration):
            if iteration % 3 == 0:
                observe(model, optimizer, iteration)

        problem.train(model, optimizer, iterations, maybe)

    straight, stopped, alone = problem.model(), problem.model(), problem.model()
    drive(straight, kind(straight.named_parameters(), FACTORIES[base]), range(9))
    before = kind(stopped.named_parameters(), FACTORIES[base])
    drive(stopped, before, range(5))
    torch.save(before.state_dict(), tmp_path / "state.pt")
    resumed = kind(stopped.named_parameters(), FACTORIES[base])
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    drive(stopped, resumed, range(5, 9))
    assert parameters_equal(straight, stopped)
    problem.train(alone, FACTORIES[base](alone.parameters()), range(9))
    assert not parameters_equal(straight, alone)
