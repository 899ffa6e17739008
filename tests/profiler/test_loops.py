"""One contract for every kind of loop: unnoticed, measured, and at the right scale."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import lipprof
from lipprof.curvature import plain_model, twice_differentiable
from lipprof.record import ENGINES, SOURCES
from tests.profiler.registry import LOOPS, compiled, criterion, mlp

SETTINGS = {"every": 2, "top": 1, "bottom": 1, "tol": 1e-4, "diagonal_probes": 2}
STEPS = 4


def left_behind(loop):
    """Python's random numbers are tested in test_noninterference: beartype draws from them here."""
    model = loop.model
    return {
        "parameters": [p.detach().clone() for p in model.parameters()],
        "buffers": [b.clone() for b in model.buffers()],
        "grad": [p.grad for p in model.parameters()],
        "optimizer": loop.optimizer.state_dict()["state"],
        "flags": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
    }


def run(make, path=None):
    """The loop, copies of its model and loss at the measured iterations, and what it left."""
    torch.manual_seed(1)
    np.random.seed(1)
    loop = make()
    prof = path and lipprof.attach(loop.model, loop.optimizer, path, **SETTINGS)
    models = []
    for iteration in range(STEPS):
        if iteration % SETTINGS["every"] == 0:
            models.append(copy.deepcopy((plain(loop.model), loop.loss)))
        loop.step(iteration)
    if prof:
        prof.close()
    return loop, models, left_behind(loop)


def plain(model):
    """A copy without what was wrapped around it or compiled in it."""
    twin = copy.deepcopy(plain_model(model))
    twin._compiled_call_impl = None
    return twin


def dense_top(model, loss, iteration, names):
    """The largest eigenvalue of the matrix of second derivatives, row by row."""
    parameters = [p for name, p in model.named_parameters() if name in names]
    with twice_differentiable(model):
        gradients = torch.autograd.grad(
            loss(model, iteration).float(), parameters, create_graph=True
        )
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    rows = [
        torch.cat([
            part.flatten()
            for part in torch.autograd.grad(
                entry, parameters, retain_graph=True, materialize_grads=True
            )
        ])
        for entry in flat
    ]
    matrix = torch.stack(rows).double()
    return float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])


@pytest.mark.filterwarnings("ignore")  # torch's own, of compilation and checkpoints
@pytest.mark.parametrize("make", LOOPS.values(), ids=LOOPS)
def test_every_loop(make, tmp_path):
    _, _, bare = run(make)
    loop, models, profiled = run(make, tmp_path / "run.h5")
    for name, value in bare.items():
        torch.testing.assert_close(profiled[name], value, rtol=0, atol=0, msg=name)
    with lipprof.open_run(tmp_path / "run.h5") as seen:
        assert seen["iteration"].tolist() == [0, 2]
        assert tuple(SOURCES[code] for code in seen["source"]) == loop.sources, seen["reason"]
        served = [source != "hooks" for source in loop.sources]
        assert (seen["status"] < 2).tolist() == served, seen["reason"]
        assert {ENGINES[code] for code in seen["engine"][served]} <= {loop.engine}
        assert (np.isnan(seen["eigenvalue"]).all(1) == ~np.array(served)).all()
        for name, known in ("grad_norm", 0), ("step_norm", 0), ("distance", 1):
            assert (seen[name][known:] > 0).all(), name
        if any(served):
            row = served.index(True)
            expected = dense_top(*models[row], 2 * row, seen.tensor_names)
            assert seen["eigenvalue"][row, 0] == pytest.approx(expected, rel=loop.rtol)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")  # torch's own, of compilation
def test_a_compiled_graph_cannot_be_kept_and_the_live_one_serves(backend, tmp_path):
    _, _, bare = run(lambda: compiled(backend))
    _, models, profiled = run(lambda: compiled(backend), tmp_path / "run.h5")
    torch.testing.assert_close(profiled["parameters"], bare["parameters"])
    with lipprof.open_run(tmp_path / "run.h5") as seen:
        assert [SOURCES[code] for code in seen["source"]] == ["hooks", "live"]
        assert "compiled function" in seen["reason"][0]
        expected = dense_top(*models[1], 2, seen.tensor_names)
        assert seen["eigenvalue"][1, 0] == pytest.approx(expected, rel=2e-3)


def test_parameters_that_come_later_are_told_once(tmp_path, caplog):
    run(LOOPS["unfrozen later"], tmp_path / "run.h5")
    assert caplog.text.count("now steps 4 tensors of the model; the 2 of") == 1


@pytest.mark.parametrize("kind", ["compiled step", "once differentiable", "gradient penalty"])
def test_another_way_is_told_once(kind, tmp_path, caplog):
    run(LOOPS[kind], tmp_path / "run.h5")
    assert caplog.text.count("From now on") == 1
    assert caplog.text.count("training goes on") == 1


def test_an_optimizer_that_steps_inside_the_backward_is_told(tmp_path, caplog):
    model = mlp()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def update(parameter):
        optimizers[parameter].step()
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    last = optimizers[model[3].weight]
    with lipprof.attach(model, last, tmp_path / "run.h5", **(SETTINGS | {"every": 1})) as prof:
        for iteration in range(3):
            criterion(model, iteration).backward()
    assert torch.isfinite(nn.utils.parameters_to_vector(model.parameters())).all()
    assert caplog.text.count("steps inside the backward") == 2
    assert prof.last.tensor_grad_norm == pytest.approx([prof.last.grad_norm])
    with lipprof.open_run(tmp_path / "run.h5") as seen:
        assert all("steps inside the backward" in reason for reason in seen["reason"])
        assert seen["distance"][1:] == pytest.approx(0.1 * seen["grad_norm"][:-1], rel=1e-4)
        assert seen["step_norm"] == pytest.approx(0.1 * seen["grad_norm"], rel=1e-4)
