import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointFunction, checkpoint

import lipprof
from lipprof.curvature import twice_differentiable, undisturbed
from tests.models import KINDS, problem


def states(model):
    return {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "parameters": [p.detach().clone() for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "buffers": {name: b.clone() for name, b in model.named_buffers()},
        "buffer_ids": [id(b) for b in model.buffers()],
        "versions": [b._version for b in model.buffers()],
        "training": [m.training for m in model.modules()],
    }


def assert_same(before, after):
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_spectrum_leaves_no_trace(kind, mode):
    p = problem(kind)
    p.loss(p.model).backward()
    list(p.model.children())[0].eval()  # mixed flags
    before = states(p.model)

    lipprof.spectrum(p.model, p.loss, top=1, bottom=1, tol=0.1, mode=mode)
    assert_same(before, states(p.model))


def test_everything_is_restored_after_an_interruption():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    before = states(model)

    def interrupted():
        with undisturbed(model, training=False):
            assert lipprof.is_probing()
            model.train()(torch.randn(5, 3))
            model[0].weight.grad = torch.ones(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_same(before, states(model))
    assert not lipprof.is_probing()


def test_random_states_of_python_and_numpy_are_restored():
    python, numpy = random.getstate(), np.random.get_state()[1].tolist()
    with undisturbed(nn.Identity()):
        random.random()
        np.random.rand()
    assert random.getstate() == python
    assert np.random.get_state()[1].tolist() == numpy


def test_shared_buffers_stay_shared():
    first, second = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    second.running_mean = first.running_mean
    model = nn.Sequential(first, second)
    with undisturbed(model):
        assert first.running_mean is second.running_mean
        first.running_mean.add_(1)
    assert first.running_mean.tolist() == [0.0, 0.0]


def test_train_mode_sees_the_same_dropout_masks_each_time():
    p = problem("mlp", torch.float64)
    first, second = (
        lipprof.spectrum(p.model, p.loss, top=2, bottom=2, mode="train") for _ in range(2)
    )
    assert torch.equal(first.values, second.values)


def test_settings_of_kernels_nest_and_are_gone_afterwards():
    inputs = torch.ones(2, 3, requires_grad=True)
    before = CheckpointFunction.apply
    with twice_differentiable(nn.Linear(3, 3)):
        with twice_differentiable(nn.Linear(3, 3)):
            pass
        total = checkpoint(torch.sin, inputs, use_reentrant=True).sum()
        (gradient,) = torch.autograd.grad(total, inputs, create_graph=True)
        (second,) = torch.autograd.grad(gradient.sum(), inputs)
    torch.testing.assert_close(second, -torch.sin(inputs.detach()))
    assert CheckpointFunction.apply == before
