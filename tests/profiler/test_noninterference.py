"""The loop never notices: bitwise the same with the profiler and without."""

import copy
import gc
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

import lipprof
from lipprof.record import ENGINES
from tests.models import KINDS, problem
from tests.profiler import loops

SMALL = {"every": 7, "top": 2, "bottom": 2, "tol": 0.05, "diagonal_probes": 2, "strict": True}


def nothing(problem, optimizer):
    return None


def with_closure(path):
    def attach(problem, optimizer):
        return lipprof.attach(problem.model, optimizer, path, loss=problem.loss, **SMALL)

    return attach


def with_replay(path):
    def attach(problem, optimizer):
        return lipprof.attach(problem.model, optimizer, path, **SMALL)

    return attach


LOOPS = {
    "sgd": dict(make_optimizer=loops.sgd_momentum),
    "adamw, clipping, scheduler": dict(
        make_optimizer=loops.adamw, before_step=loops.clip, schedule=True
    ),
    "accumulation": dict(make_optimizer=loops.adamw, accumulate=3),
}


@pytest.mark.parametrize("source", [with_closure, with_replay])
@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_bitwise_the_same(kind, loop, source, tmp_path):
    """Dropout, BatchNorm and stock attention; 50 iterations, 8 measurements."""
    path = tmp_path / "run.h5"
    bare = loops.train(kind, attach=nothing, **loop)
    profiled = loops.train(kind, attach=source(path), **loop)
    torch.testing.assert_close(profiled, bare, rtol=0, atol=0)
    with lipprof.open_run(path) as run:
        assert run["iteration"].tolist() == list(range(0, 50, 7))
        assert (run["status"] < 2).all()


@pytest.mark.parametrize("engine", ["traced", "differences"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_engine_is_noticed(kind, engine, tmp_path):
    """Every engine that may serve a closure; differences move the parameters and put them back."""

    def attach(problem, optimizer):
        return lipprof.attach(
            problem.model, optimizer, tmp_path / "run.h5", loss=problem.loss, engine=engine, **SMALL
        )

    bare = loops.train(kind, loops.adamw, nothing, iterations=15)
    profiled = loops.train(kind, loops.adamw, attach, iterations=15)
    torch.testing.assert_close(profiled, bare, rtol=0, atol=0)
    with lipprof.open_run(tmp_path / "run.h5") as run:
        assert {ENGINES[code] for code in run["engine"]} == {engine}
        assert (run["status"] < 2).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_estimator_is_noticed(kind, tmp_path):
    """EigenARC and trial steps move the parameters, third derivatives replace layers."""

    def attach(problem, optimizer):
        return lipprof.attach(
            problem.model,
            optimizer,
            tmp_path / "run.h5",
            loss=lambda model, _: problem.loss(model),
            probe=[torch.zeros(4)],
            noise=[torch.zeros(4), torch.zeros(4)],
            lipschitz="all",
            superiority=True,
            **SMALL,
        )

    bare = loops.train(kind, loops.adamw, nothing, iterations=15)
    profiled = loops.train(kind, loops.adamw, attach, iterations=15)
    torch.testing.assert_close(profiled, bare, rtol=0, atol=0)
    with lipprof.open_run(tmp_path / "run.h5") as run:
        seen = run["converged"] == 1
        for name in ("lipschitz_exact", "lipschitz_step", "noise_floor", "newton_descent"):
            assert np.isfinite(run[name][seen]).all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_third_derivatives_of_a_replayed_step_are_not_noticed(kind, tmp_path):
    def attach(problem, optimizer):
        return lipprof.attach(
            problem.model, optimizer, tmp_path / "run.h5", lipschitz="exact", **SMALL
        )

    bare = loops.train(kind, loops.adamw, nothing, iterations=15)
    profiled = loops.train(kind, loops.adamw, attach, iterations=15)
    torch.testing.assert_close(profiled, bare, rtol=0, atol=0)
    with lipprof.open_run(tmp_path / "run.h5") as run:
        assert np.isfinite(run["lipschitz_along"][run["converged"] == 1]).all()
        assert (run["exact_error"] < 1e-2).all()


def test_the_loop_keeps_its_backward_and_its_hooks(tmp_path):
    backward = torch.autograd.backward
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prof = lipprof.attach(model, optimizer, tmp_path / "run.h5", every=2, top=1, bottom=1)
    for iteration in range(4):
        assert (torch.autograd.backward is backward) == (iteration % 2 == 1)
        assert len(model._forward_hooks) == (iteration + 1) % 2
        model(torch.ones(2, 3)).square().mean().backward()
        optimizer.step()
    prof.close()
    assert torch.autograd.backward is backward
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_the_model_does_not_report(copied, tmp_path):
    """EMA and ``torch.save(model)`` in an iteration that is being measured."""
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.ones(2, 3)
    with lipprof.attach(model, optimizer, tmp_path / "run.h5", top=1, bottom=1) as prof:
        loss = model(x).square().mean()
        twin = copied(model)
        torch.testing.assert_close(twin(x), model(x))
        assert "lipprof" not in repr([*twin._forward_pre_hooks.values()])
        twin(x).sum().backward()
        loss.backward()
        optimizer.step()
    assert prof.last.status == 0
    assert prof.last.loss == loss.item()


@pytest.mark.parametrize("source", [with_closure, with_replay, "live"])
def test_hooks_of_the_user_are_called_as_often_when_nothing_is_probed(source, tmp_path):
    """They do run within measurements, where ``is_probing`` tells them."""

    def counts(attach):
        torch.manual_seed(1)
        p = problem("attention")
        optimizer = loops.adamw(p.model.parameters())
        calls, probing = Counter(), Counter()

        def counting(name):
            def hook(*_):
                (probing if lipprof.is_probing() else calls)[name] += 1

            return hook

        module = p.model.qkv
        module.register_forward_pre_hook(counting("forward pre"))
        module.register_forward_hook(counting("forward"))
        module.register_full_backward_pre_hook(counting("backward pre"))
        module.register_full_backward_hook(counting("backward"))
        module.weight.register_hook(counting("gradient"))
        module.weight.register_post_accumulate_grad_hook(counting("accumulated"))
        prof = attach(p, optimizer)
        for iteration in range(10):
            optimizer.zero_grad()
            logits = p.model(p.batch(iteration)[0])
            logits.register_hook(counting("logits"))
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, -2), p.batch(iteration)[1].flatten()
            )
            loss.backward()
            optimizer.step()
        if prof:
            prof.close()
        return calls, probing

    def live(p, optimizer):
        prof = with_replay(tmp_path / "run.h5")(p, optimizer)
        prof._source.way = "live"
        prof.load_state_dict({"iteration": 0})
        return prof

    attach = live if source == "live" else source(tmp_path / "run.h5")
    bare, none = counts(nothing)
    calls, probing = counts(attach)
    assert not none
    assert set(bare.values()) == {10}
    assert calls == bare
    assert probing["forward"] + probing["backward"] > 0


@pytest.mark.parametrize("source", [with_closure, with_replay])
@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_measurements_leave_nothing_behind(count, source, tmp_path):
    """Objects and tensors that the garbage collector knows, early and at the end."""
    p = problem("mlp")
    optimizer = loops.adamw(p.model.parameters())
    light = {"top": 1, "bottom": 0, "tol": 0.3, "diagonal_probes": 2, "stability": False}
    keywords = {"loss": p.loss} if source is with_closure else {}
    found = []
    with lipprof.attach(p.model, optimizer, tmp_path / "run.h5", every=1, **light, **keywords):
        for iteration in range(count):
            optimizer.zero_grad()
            p.loss(p.model, p.batch(iteration)).backward()
            optimizer.step()
            if iteration in {10, count - 1}:
                gc.collect()
                known = gc.get_objects()
                found.append((sum(issubclass(type(o), torch.Tensor) for o in known), len(known)))
                del known
    (tensors, objects), (later_tensors, later_objects) = found
    assert later_tensors <= tensors
    assert later_objects <= objects + 50


def test_importing_and_attaching_draw_no_random_number(tmp_path):
    script = f"""
import random, numpy, torch
random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
import lipprof
prof = lipprof.attach(model, optimizer, {str(tmp_path / "run.h5")!r}, top=1, bottom=1)
model(torch.ones(2, 3)).square().mean().backward()
optimizer.step()
prof.close()
after = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
assert before == after
assert prof.last.status == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True)
