"""One contract for every kind of loop: unnoticed, measured, and at the right scale."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import lipprof
from tests.profiler.registry import LOOPS, compiled, criterion, mlp

SETTINGS = {"every": 2, "top": 1, "bottom": 1, "tol": 1e-4, "diagonal_probes": 2}
STEPS = 6


def left_behind(loop):
    """Not Python's random numbers, which beartype draws from here; see test_noninterference."""
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
    torch.manual_seed(1)
    np.random.seed(1)
    loop = make()
    first = copy.deepcopy(getattr(loop.model, "_orig_mod", loop.model))
    prof = path and lipprof.attach(loop.model, loop.optimizer, path, **SETTINGS)
    for iteration in range(STEPS):
        loop.step(iteration)
    if prof:
        prof.close()
    return loop, first, left_behind(loop)


@pytest.mark.filterwarnings("ignore:.*None of the inputs have requires_grad")
@pytest.mark.parametrize("make", LOOPS.values(), ids=LOOPS)
def test_every_loop(make, tmp_path):
    _, _, bare = run(make)
    loop, first, profiled = run(make, tmp_path / "run.h5")
    for name, value in bare.items():
        torch.testing.assert_close(profiled[name], value, rtol=0, atol=0, msg=name)
    with lipprof.open_run(tmp_path / "run.h5") as seen:
        assert (seen["status"] < 2).all(), seen["reason"]
        assert seen["iteration"].tolist() == [0, 2, 4]
        assert seen.attrs["source"] == "replay"
        top = seen["eigenvalue"][0, 0]
    for name, parameter in first.named_parameters():
        if loop.apart and name.startswith(loop.apart):
            parameter.requires_grad_(False)
    expected = lipprof.spectrum(
        first, lambda m: loop.first_loss(m).float(), top=1, bottom=0, tol=1e-6, mode="train"
    )
    assert top == pytest.approx(float(expected.values[0]), rel=loop.rtol)


def test_a_compiled_graph_cannot_be_kept_and_the_live_one_serves(tmp_path, caplog):
    _, _, bare = run(lambda: compiled("aot_eager"))
    loop, first, profiled = run(lambda: compiled("aot_eager"), tmp_path / "run.h5")
    torch.testing.assert_close(profiled["parameters"], bare["parameters"])
    with lipprof.open_run(tmp_path / "run.h5") as seen:
        assert seen["status"].tolist() == [2, 0, 0]
        assert "compiled function" in seen["reason"][0]
    assert caplog.text.count("run on twice differentiable kernels") == 1


def test_parameters_that_come_later_are_told_once(tmp_path, caplog):
    run(LOOPS["unfrozen later"], tmp_path / "run.h5")
    assert caplog.text.count("now steps 4 tensors of the model; the 2 of") == 1


def test_an_optimizer_that_steps_inside_the_backward_is_told(tmp_path):
    model = mlp()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def update(parameter):
        optimizers[parameter].step()
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    last = optimizers[model[3].weight]
    with lipprof.attach(model, last, tmp_path / "run.h5", **SETTINGS) as prof:
        criterion(model).backward()
    assert "steps inside the backward" in prof.last.reason
    assert torch.isfinite(nn.utils.parameters_to_vector(model.parameters())).all()
