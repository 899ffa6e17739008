"""AMOS over modules, chunks and matrices: what switches together, and that it changes no number."""

import copy
import itertools
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim

from lipprof.advice import Choice
from lipprof.curvature import ParameterView, Partition, Piece, read_preconditioner
from lipprof.errors import ConfigError
from lipprof.optim import AMOS, Sophia, register_elementwise
from lipprof.optim.handles import Handle

from .problems import Problem, parameters_equal, recommend

FACTORIES = {
    "sgd": partial(optim.SGD, lr=0.05),
    "momentum": partial(optim.SGD, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": partial(optim.AdamW, lr=0.01),
    "foreach": partial(optim.Adam, lr=0.01, amsgrad=True, foreach=True),
    "fused": partial(optim.AdamW, lr=0.01, fused=True),
    "sophia": partial(Sophia, lr=0.01),
}
ADAMW = FACTORIES["adamw"]
MUON = getattr(optim, "Muon", None)
needs_muon = pytest.mark.skipif(MUON is None, reason="this torch has no Muon")


def scatter(amos, seed, iteration):
    """Send every unit to a side at random."""
    names = list(amos.assigned)
    drawn = np.random.default_rng([seed, iteration]).integers(0, 3, len(names))
    amos.follow(recommend(dict(zip(names, map(Choice, drawn.tolist()), strict=True)), iteration))


# --- numbers do not change -----------------------------------------------------------------------


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("units", ["tensor", "module", 1, 7, 16, 10**9])
def test_between_two_arms_alike_any_switching_is_that_optimizer_alone(name, units):
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos = AMOS(model.named_parameters(), FACTORIES[name], FACTORIES[name], units=units)
    problem.train(model, amos, range(8), lambda iteration: scatter(amos, 0, iteration))
    problem.train(reference, FACTORIES[name](reference.parameters()), range(8))
    assert amos.switches
    if name == "fused":  # a CPU's fused kernel rounds the end of a slice in another way
        torch.testing.assert_close(
            list(model.parameters()), list(reference.parameters()), rtol=1e-5, atol=1e-7
        )
    else:
        assert parameters_equal(model, reference)


@settings(max_examples=15, deadline=None)
@given(
    size=st.integers(1, 400),
    seed=st.integers(0, 99),
    name=st.sampled_from(["momentum", "adamw", "sophia"]),
)
def test_no_cut_is_seen_in_large_tensors(size, seed, name):
    def train(build):
        generator = torch.Generator().manual_seed(seed)
        shapes = [(37, 5), (3,), (11, 13), (2, 3, 2, 2)]
        params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        optimizer = build(params)
        for iteration in range(4):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator)
            if isinstance(optimizer, AMOS):
                scatter(optimizer, seed, iteration)
            optimizer.step()
        return params

    cut = train(lambda params: AMOS(params, FACTORIES[name], FACTORIES[name], units=size))
    assert all(map(torch.equal, cut, train(FACTORIES[name])))


@pytest.mark.parametrize("units", ["tensor", "module", 7, 10**9])
def test_on_one_side_is_that_optimizer_alone(units):
    problem = Problem()
    for start, factory in (("first", "adamw"), ("second", "momentum")):
        model, reference = problem.model(), problem.model()
        arms = FACTORIES["adamw"], FACTORIES["momentum"]
        problem.train(
            model, AMOS(model.named_parameters(), *arms, units=units, start=start), range(5)
        )
        problem.train(reference, FACTORIES[factory](reference.parameters()), range(5))
        assert parameters_equal(model, reference)


@pytest.mark.parametrize("units", ["module", 7])
@pytest.mark.parametrize("idle_state", ["warm", "restart"])
def test_switches_and_resumes_bitwise(units, idle_state, tmp_path):
    problem = Problem()

    def build(model):
        return AMOS(
            model.named_parameters(),
            FACTORIES["momentum"],
            FACTORIES["sophia"],
            units=units,
            idle_state=idle_state,
        )

    def drive(model, amos, iterations):
        def before(iteration):
            if iteration % 3 == 0:
                amos.observe_sampled_gradient(8)
            scatter(amos, 5, iteration)

        problem.train(model, amos, iterations, before)

    straight, stopped = problem.model(), problem.model()
    whole, before = build(straight), build(stopped)
    drive(straight, whole, range(9))
    drive(stopped, before, range(5))
    torch.save(before.state_dict(), tmp_path / "state.pt")
    resumed = build(stopped)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.assigned == before.assigned
    drive(stopped, resumed, range(5, 9))
    assert parameters_equal(straight, stopped)
    assert resumed.switches == whole.switches

    other = AMOS(stopped.named_parameters(), FACTORIES["momentum"], FACTORIES["sophia"], units=8)
    with pytest.raises(ConfigError, match=r"other units.*same units="):
        other.load_state_dict(before.state_dict())


def test_a_chunk_on_another_side_takes_the_steps_of_its_own_optimizer():
    problem = Problem()
    model, left, right = problem.model(), problem.model(), problem.model()
    amos = AMOS(model.named_parameters(), ADAMW, FACTORIES["sgd"], units=20)
    names = ["0.weight[:20]", "0.weight[20:] to 2.weight[:4]", "2.weight[4:] to 2.bias"]
    assert list(amos.assigned) == names
    amos.follow(recommend({name: Choice(1 + (i == 1)) for i, name in enumerate(names)}))
    problem.train(model, amos, range(1))
    problem.train(left, ADAMW(left.parameters()), range(1))
    problem.train(right, FACTORIES["sgd"](right.parameters()), range(1))
    flat = [nn.utils.parameters_to_vector(net.parameters()) for net in (model, left, right)]
    assert torch.equal(flat[0][20:40], flat[2][20:40])
    assert torch.equal(flat[0][:20], flat[1][:20])
    assert torch.equal(flat[0][40:], flat[1][40:])
    assert not torch.equal(flat[1][20:40], flat[2][20:40])


# --- AMOS's own estimate -------------------------------------------------------------------------


@pytest.mark.parametrize("units", ["module", 20])
def test_the_own_estimate_is_that_of_the_units(units):
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), FACTORIES["sgd"], FACTORIES["sophia"], units=units)
    sizes = Partition.of(model.named_parameters(), units).numel
    diagonals = []
    for iteration in range(3):
        diagonal = {p: (1 + iteration) * p.detach().abs() for p in model.parameters()}
        amos.observe_curvature(diagonal)
        problem.train(model, amos, range(iteration, iteration + 1))
        with amos._arms[1].whole() as second:
            held = second.diagonal()
        entries = torch.cat([held[handle.tensor].flatten() for handle in amos._switchable])
        diagonals.append([float(part.double().mean()) for part in entries.split(sizes)])
    known = amos.state_dict()["amos"]["estimate"]["curvature"]
    np.testing.assert_allclose(known.numpy(), diagonals[-1], rtol=1e-12)
    assert set(amos.state_dict()["amos"]["estimate"]["advisor"]["choice"]) <= {1, 2}


def test_hutchinson_probes_reach_slices():
    problem = Problem()
    model, reference = problem.model(), problem.model()
    sophia = partial(Sophia, lr=0.01, estimator="hutchinson")
    amos = AMOS(model.named_parameters(), ADAMW, sophia, units=7, start="second")
    alone = sophia(reference.parameters())
    for net, optimizer in ((model, amos), (reference, alone)):
        generator = torch.Generator().manual_seed(3)
        optimizer.observe_hutchinson(problem.loss(net, 0), generator)
        problem.train(net, optimizer, range(3))
    assert parameters_equal(model, reference)
    gnb = AMOS(model.named_parameters(), ADAMW, FACTORIES["sophia"], units=7)
    with pytest.raises(ConfigError, match="estimator='gnb'"):
        gnb.observe_hutchinson(problem.loss(model, 0))


# --- what a view must bear -----------------------------------------------------------------------


def test_views_follow_when_memory_is_replaced():
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos = AMOS(model.named_parameters(), ADAMW, ADAMW, units=7)
    alone = ADAMW(reference.parameters())
    for iteration in range(4):
        if iteration == 2:
            nn.utils.vector_to_parameters(
                nn.utils.parameters_to_vector(model.parameters()), model.parameters()
            )
        problem.train(model, amos, range(iteration, iteration + 1))
        problem.train(reference, alone, range(iteration, iteration + 1))
    assert parameters_equal(model, reference)


def test_gradients_are_lent_not_kept():
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), ADAMW, ADAMW, units=7)
    problem.train(model, amos, range(1))
    assert all(handle.tensor.grad is None for handle in amos._switchable if handle.is_view)
    assert all(p.grad is not None for p in model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    model.zero_grad()
    amos.step()
    assert all(map(torch.equal, before, model.parameters()))


def test_a_view_changes_its_parameters_version():
    p = nn.Parameter(torch.ones(4))
    amos = AMOS([("p", p)], ADAMW, ADAMW, units=3)
    loss = (p * p).sum()
    p.grad = torch.ones(4)
    amos.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_layouts_and_gradients_without_views_are_refused():
    p = nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
    with pytest.raises(ConfigError, match=r"conv\[:50\] does not lie in memory row by row"):
        AMOS([("conv", p)], ADAMW, ADAMW, units=50)
    embedding = nn.Embedding(5, 3, sparse=True)
    amos = AMOS(embedding.named_parameters(), FACTORIES["sgd"], FACTORIES["sgd"], units=4)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match=r"weight\[:4\] is sparse"):
        amos.step()


# --- who takes slices ----------------------------------------------------------------------------


class Coupled(optim.SGD):
    """Not SGD itself: nobody has said that it treats entries alone."""


def test_slices_go_only_to_optimizers_known_to_treat_entries_alone(monkeypatch):
    model = Problem().model()
    amos = AMOS(model.named_parameters(), ADAMW, partial(Coupled, lr=0.1), units=33)
    plan = amos.plan()
    first, last = plan
    assert plan[first].startswith("may switch, but for 0.bias[:3] (the second")
    assert "register_elementwise(Coupled)" in plan[first]
    assert set(amos.assigned) == {first, last}
    with pytest.raises(ConfigError, match="refuses 0.weight.*not known to treat every entry alone"):
        AMOS(model.named_parameters(), partial(Coupled, lr=0.1), ADAMW, units=7)
    monkeypatch.setattr("lipprof.optim.trial._ELEMENTWISE", {optim.AdamW})
    register_elementwise(Coupled)
    amos = AMOS(model.named_parameters(), ADAMW, partial(Coupled, lr=0.1), units=7)
    assert set(amos.plan().values()) == {"may switch"}


@needs_muon
def test_of_a_module_what_the_second_refuses_stays():
    model = Problem().model()
    amos = AMOS(model.named_parameters(), ADAMW, MUON, units="module", start="second")
    assert amos.assigned == {"0": Choice.SECOND, "2": Choice.SECOND}
    assert amos.plan()["0"].startswith("may switch, but for 0.bias (the second optimizer refuses")
    held = [p for g in amos._arms[1].optimizer.param_groups for p in g["params"]]
    assert [p.ndim for p in held] == [2, 2]


class RefusesAtItsSecondStep(optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if self.state[p] and p.ndim == 1:
                    raise RuntimeError("vectors are beneath me")
                self.state[p]["seen"] = True
        super().step(closure)


def test_a_refusal_in_a_step_is_known_before_training():
    model = Problem().model()
    state = torch.random.get_rng_state()
    amos = AMOS(model.named_parameters(), ADAMW, partial(RefusesAtItsSecondStep, lr=0.1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert amos.plan()["0.bias"] == "the second optimizer refuses it: vectors are beneath me"
    assert amos.plan()["0.weight"] == "may switch"


def test_an_optimizer_for_sparse_gradients_is_taken():
    embedding = nn.Embedding(5, 3, sparse=True)
    amos = AMOS(embedding.named_parameters(), FACTORIES["sgd"], optim.SparseAdam, start="second")
    embedding(torch.tensor([1])).sum().backward()
    amos.step()
    assert amos.plan() == {"weight": "may switch"}


# --- names, groups, order ------------------------------------------------------------------------


def decayed(model, reverse=False):
    """The usual two groups: matrices with weight decay, vectors without."""
    named = list(model.named_parameters())
    groups = [
        {"params": [(n, p) for n, p in named if p.ndim == 2], "weight_decay": 0.1},
        {"params": [(n, p) for n, p in named if p.ndim == 1], "weight_decay": 0.0},
    ]
    return groups[::-1] if reverse else groups


def test_units_go_across_groups_and_keep_their_hyperparameters():
    problem = Problem()
    partition = Partition.of(problem.model().named_parameters(), 7)
    for units, reverse in itertools.product(("module", partition), (False, True)):
        model, reference = problem.model(), problem.model()
        amos = AMOS(decayed(model, reverse), ADAMW, ADAMW, units=units)
        names = ("0", "2") if units == "module" else partition.names
        assert set(amos.assigned) == set(names)
        problem.train(model, amos, range(6), lambda i, amos=amos: scatter(amos, 1, i))
        problem.train(reference, ADAMW(decayed(reference, reverse)), range(6))
        assert parameters_equal(model, reference)


def test_bad_units_and_partitions_are_refused():
    model = Problem().model()

    def build(params=None, **options):
        return AMOS(params or model.named_parameters(), ADAMW, ADAMW, **options)

    for bad in (0, -3, "layer", True, 1.5, "eigenspace"):
        with pytest.raises(ConfigError, match=r"expected 'tensor', 'module', or the number.*FOSI"):
            build(units=bad)
    with pytest.raises(ConfigError, match="Pass model.named_parameters"):
        build(model.parameters(), units="module")
    with pytest.raises(ConfigError, match=r"does not fit: it has 2\.bias, 2\.weight"):
        build(
            list(model[0].named_parameters(prefix="0")),
            units=Partition.of(model.named_parameters(), 7),
        )
    many = [nn.Parameter(torch.zeros(100_001))]
    with pytest.raises(ConfigError, match=r"would be 100,001, more than 10,000. Use units=11"):
        build(many, units=1)


def test_a_group_added_later_has_units_of_its_own():
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos = AMOS([*model[0].named_parameters(prefix="0")], ADAMW, ADAMW, units=7)
    alone = ADAMW(reference[0].parameters())
    problem.train(model, amos, range(2))
    problem.train(reference, alone, range(2))
    amos.add_param_group({"params": [*model[2].named_parameters(prefix="2")]})
    alone.add_param_group({"params": [*reference[2].parameters()]})
    problem.train(model, amos, range(2, 6), lambda i: scatter(amos, 2, i))
    problem.train(reference, alone, range(2, 6))
    assert parameters_equal(model, reference)
    assert sum(Partition.of(model.named_parameters(), 7).numel) == 57


def test_frozen_tensors_are_units_of_their_own():
    model = Problem().model()
    model[0].bias.requires_grad_(False)
    amos = AMOS(model.named_parameters(), ADAMW, ADAMW, units=25)
    partition = Partition.of(model.named_parameters(), 25)
    assert set(amos.assigned) == {*partition.names, "0.bias"}
    assert amos.follow(recommend(dict.fromkeys(partition.names, Choice.SECOND)))
    with pytest.raises(ConfigError, match="chunks are cut in the order of the parameters"):
        amos.follow(recommend(dict.fromkeys(partition.names[1:], Choice.SECOND)))


# --- convolutions as matrices --------------------------------------------------------------------


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        return self.head(self.conv(images).tanh().mean((2, 3)))


def images_loss(model, memory_format=torch.contiguous_format):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 6, 6, generator=generator).to(memory_format=memory_format)
    return (model(images) ** 2).sum()


@needs_muon
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_steps_convolutions_as_matrices(layout, tmp_path):
    torch.manual_seed(0)
    model = Convolutions()
    kernel = nn.Parameter(model.conv.weight.detach().clone().flatten(1))
    by_hand = MUON([kernel], lr=0.02)
    model = model.to(memory_format=layout)
    plain = AMOS(model.named_parameters(), ADAMW, MUON)
    assert "2D" in plain.plan()["conv.weight"]
    muon = partial(MUON, lr=0.02)

    def build():
        return AMOS(model.named_parameters(), ADAMW, muon, matrices=True, start="second")

    amos = build()
    for iteration in range(4):
        model.zero_grad()
        images_loss(model, layout).backward()
        kernel.grad = model.conv.weight.grad.flatten(1).clone()
        amos.step()
        by_hand.step()
        assert model.conv.weight.shape == (4, 3, 3, 3)
        exact = layout is torch.contiguous_format
        torch.testing.assert_close(  # columns in another order are rounded otherwise, in bfloat16
            model.conv.weight.flatten(1), kernel, rtol=0, atol=0 if exact else 2e-3
        )
        if iteration == 1:
            torch.save(amos.state_dict(), tmp_path / "state.pt")
            amos = build()
            amos.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        if not exact:
            kernel.data.copy_(model.conv.weight.flatten(1))


# --- around the step -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_preconditioner_is_put_together_from_its_pieces(layout):
    torch.manual_seed(0)
    model = Convolutions().to(memory_format=layout)
    images_loss(model, layout).backward()
    view = ParameterView.of(model)
    gradient = view.flatten([p.grad for p in view.parameters])
    options = {"matrices": True} if layout is torch.channels_last else {"units": 50}
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    read = []
    for extra in ({}, options):
        amos = AMOS(model.named_parameters(), ADAMW, partial(optim.Adam, lr=0.02), **extra)
        amos.step()
        model.load_state_dict(kept)
        names = list(amos.assigned)
        amos.follow(recommend({name: Choice(1 + name.startswith("conv")) for name in names}))
        read.append(read_preconditioner(amos, view, gradient))
    whole, pieces = read
    assert pieces.included == whole.included
    convolution = slice(0, view.n - 10)  # the last chunk has gone over with the head in it
    torch.testing.assert_close(pieces.scale[convolution], whole.scale[convolution])
    assert len(pieces.scale.unique()) > 10


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copied_view_belongs_to_the_copied_parameter(copied):
    parameter = nn.Parameter(torch.zeros(4))
    handle = Handle(Piece("p", 1, 3, 4), parameter, 0, matrix=False)
    twin, other = copied((parameter, handle))
    for p, h, value in ((parameter, handle, 1.0), (twin, other, 2.0)):
        p.grad = torch.ones(4)
        h.lend_gradient()
        h.tensor.fill_(value)
    assert parameter.tolist() == [0, 1, 1, 0]
    assert twin.tolist() == [0, 2, 2, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["momentum", "adamw", "fused", "sophia"])
def test_no_cut_is_seen_on_a_gpu(name):
    problem = Problem()
    problem.inputs, problem.labels = problem.inputs.cuda(), problem.labels.cuda()
    model, reference = problem.model().cuda(), problem.model().cuda()
    amos = AMOS(model.named_parameters(), FACTORIES[name], FACTORIES[name], units=7)
    problem.train(model, amos, range(8), lambda iteration: scatter(amos, 0, iteration))
    problem.train(reference, FACTORIES[name](reference.parameters()), range(8))
    assert parameters_equal(model, reference)
