"""A step of AMOS happens whole or not at all: gradients that are not finite, arms that raise."""

import copy
from functools import partial

import pytest
import torch
from torch import nn, optim

from lipprof.advice import Choice
from lipprof.errors import ConfigError, NonfiniteError
from lipprof.optim import AMOS, Sophia

from .problems import Problem, parameters_equal, recommend

ADAMW = partial(optim.AdamW, lr=0.01)
SOPHIA = partial(Sophia, lr=0.02)
MIXED = (Choice.SECOND, Choice.FIRST, Choice.SECOND, Choice.FIRST)


class Brittle(optim.SGD):
    """SGD that steps its first group and then fails, when told to; it counts in its groups."""

    fails: BaseException | None = None

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
        result = super().step(closure)
        if Brittle.fails is not None:
            error, Brittle.fails = Brittle.fails, None
            raise error
        return result


BRITTLE = partial(Brittle, lr=0.05, momentum=0.9)


def mixed(problem, model, first=ADAMW, second=SOPHIA, **options):
    """AMOS with tensors on both sides, two steps along."""
    amos = AMOS(model.named_parameters(), first, second, **options)
    amos.follow(recommend(dict(zip(amos.assigned, MIXED, strict=True))))
    problem.train(model, amos, range(2))
    return amos


def snapshot(model, amos):
    return copy.deepcopy((dict(model.named_parameters()), amos.state_dict()))


def assert_as_before(model, amos, before):
    parameters, state = snapshot(model, amos)
    torch.testing.assert_close(parameters, before[0], rtol=0, atol=0)
    assert state["amos"] == before[1]["amos"]
    assert state["state"].keys() == before[1]["state"].keys()
    for key, sides in before[1]["state"].items():
        torch.testing.assert_close(state["state"][key], sides, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("first", "second"), [(ADAMW, SOPHIA), (BRITTLE, ADAMW)])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_named(bad, first, second):
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos, never = (mixed(problem, m, first, second) for m in (model, reference))
    before = snapshot(model, amos)

    def spoil(_):
        model[0].weight.grad[1, 2:4] = bad
        model[2].bias.grad[0] = bad

    message = r"gradient of 0\.weight \(2 of 30 entries\), 2\.bias \(1 of 3 entries\)\. Parameters"
    with pytest.raises(NonfiniteError, match=message):
        problem.train(model, amos, range(2, 3), spoil)
    assert_as_before(model, amos, before)
    problem.train(model, amos, range(2, 5))
    problem.train(reference, never, range(2, 5))
    assert parameters_equal(model, reference)


def test_of_many_bad_gradients_a_few_are_named():
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
    amos = AMOS(model.parameters(), ADAMW, SOPHIA)
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.nan)
    with pytest.raises(NonfiniteError, match=r"param0 .*, param1 .*, param2 .* and 5 more"):
        amos.step()


def test_large_gradients_are_finite_though_their_norm_is_not():
    model = nn.Linear(2, 2, bias=False)
    amos = AMOS(model.named_parameters(), ADAMW, SOPHIA)
    model.weight.grad = torch.full((2, 2), 1e30)
    amos.step()
    assert amos.state_dict()["amos"]["iteration"] == 1


def test_sparse_gradients_are_checked_too():
    model = nn.Embedding(4, 2, sparse=True)
    amos = AMOS(model.named_parameters(), optim.SparseAdam, partial(optim.SGD, lr=0.1))
    for factor, spoiled in ((1.0, False), (torch.nan, True)):
        model.zero_grad()
        (factor * model(torch.tensor([1, 1, 3]))).sum().backward()
        if not spoiled:
            amos.step()
            continue
        with pytest.raises(NonfiniteError, match=r"weight \(4 of 4 entries\)"):
            amos.step()
    assert model.weight.isfinite().all()


def test_where_gradients_are_checked():
    """None checks host memory, True everywhere: meta tensors cannot be read, so it fails there."""
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    AMOS(model.named_parameters(), ADAMW, SOPHIA).step()
    with pytest.raises((RuntimeError, NotImplementedError)):
        AMOS(model.named_parameters(), ADAMW, SOPHIA, check_finite=True).step()


@pytest.mark.parametrize("order", ["raises first", "raises second"])
@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=repr)
def test_an_arm_that_raises_is_undone_on_both_sides(order, error):
    problem = Problem()
    model, reference = problem.model(), problem.model()
    arms = (BRITTLE, ADAMW) if order == "raises first" else (ADAMW, BRITTLE)
    amos, never = (mixed(problem, m, *arms, rollback="always") for m in (model, reference))
    before = snapshot(model, amos)

    def fail(_):
        Brittle.fails = error

    with pytest.raises(type(error)):
        problem.train(model, amos, range(2, 3), fail)
    assert_as_before(model, amos, before)
    problem.train(model, amos, range(2, 6))
    problem.train(reference, never, range(2, 6))
    assert parameters_equal(model, reference)
    groups = [group for arm in amos._arms for group in arm.groups if "count" in group]
    assert [group["count"] for group in groups] == [6]


def test_after_a_change_the_step_is_undone_and_later_ones_say_that_they_are_not():
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), ADAMW, BRITTLE)

    def fail(_):
        Brittle.fails = RuntimeError("broken")

    def attempt():
        before = snapshot(model, amos)
        with pytest.raises(RuntimeError, match="broken") as caught:
            problem.train(model, amos, range(1), fail)
        notes = getattr(caught.value, "__notes__", [])
        return before, notes

    def switch(choices):
        amos.follow(recommend(dict(zip(amos.assigned, choices, strict=True))))

    for change in (
        lambda: switch(MIXED),
        lambda: switch([MIXED[1], *MIXED[1:]]),
        lambda: amos.load_state_dict(amos.state_dict()),
        lambda: amos.add_param_group({"params": [("new", nn.Parameter(torch.ones(2)))]}),
    ):
        change()
        before, notes = attempt()
        assert_as_before(model, amos, before)
        assert not notes
        problem.train(model, amos, range(1))
        before, (note,) = attempt()
        assert "rollback='always'" in note
        assert any(not torch.equal(p, before[0][name]) for name, p in model.named_parameters())


def test_never_copies_nothing():
    problem = Problem()
    model = problem.model()
    amos = AMOS(model.named_parameters(), ADAMW, BRITTLE, start="second", rollback="never")

    def fail(_):
        Brittle.fails = RuntimeError("broken")

    with pytest.raises(RuntimeError) as caught:
        problem.train(model, amos, range(1), fail)
    assert caught.value.__notes__
    assert not parameters_equal(model, problem.model())


def test_out_of_memory_with_the_copies_is_tried_without_them():
    problem = Problem()
    model, reference = problem.model(), problem.model()
    amos, never = (mixed(problem, m, BRITTLE, ADAMW, rollback="always") for m in (model, reference))

    def fail(_):
        Brittle.fails = torch.OutOfMemoryError("full")

    problem.train(model, amos, range(2, 3), fail)
    problem.train(reference, never, range(2, 3))
    assert parameters_equal(model, reference)
    Brittle.fails = None


def test_an_unknown_rollback_is_refused():
    with pytest.raises(ConfigError, match="changes, always, never"):
        AMOS(Problem().model().named_parameters(), ADAMW, SOPHIA, rollback="sometimes")
