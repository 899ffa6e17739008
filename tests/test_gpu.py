"""The same numbers on a GPU as on the CPU, nothing waited for within a step, nothing disturbed.

The CPU cases run everywhere and keep the GPU ones runnable.
"""

import copy
import io
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

import lipprof
from lipprof import AMOS, Choice
from lipprof.advice import Entry
from lipprof.demo.gpt import CharGPT
from lipprof.linalg import DenseOperator
from lipprof.linalg.krylov import KrylovBasis
from tests.linalg import spectra
from tests.profiler.test_contest import decided_for

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def gpt(device):
    torch.manual_seed(0)
    model = CharGPT(30, length=16, layers=2, width=32)
    tokens = torch.randint(0, 30, (8, 17))
    return model.to(device), (tokens[:, :-1].to(device), tokens[:, 1:].to(device))


@pytest.mark.parametrize("engine", ["retained", "traced", "differences"])
@pytest.mark.parametrize("device", DEVICES)
def test_eigenvalues_do_not_depend_on_the_device(device, engine):
    model, batch = gpt(device)
    exact, exact_batch = gpt("cpu")
    exact.double()
    tol = 1e-2 if engine == "differences" else 1e-4
    pairs = lipprof.spectrum(
        model, lambda m: m.loss(batch), top=3, bottom=1, tol=tol, engine=engine
    )
    truth = lipprof.spectrum(exact, lambda m: m.loss(exact_batch), top=3, bottom=1, tol=1e-8)
    torch.testing.assert_close(pairs.values, truth.values, rtol=5 * tol, atol=0.0)
    assert pairs.vectors.device.type == device


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_never_waits_for_the_device(device):
    op = DenseOperator(spectra.with_spectrum(spectra.indefinite(200)).float().to(device))
    basis = KrylovBasis(op, 30, device=torch.device(device), seed=0)
    basis.insert_direction()
    basis.step()
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            basis.step()
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert basis.j == 11


@pytest.mark.parametrize("source", ["closure", "replay"])
@pytest.mark.parametrize("device", DEVICES)
def test_training_never_notices(device, source, tmp_path):
    model, batch = gpt(device)
    plain = copy.deepcopy(model)

    def train(model, attached):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        keywords = {"loss": lambda m: m.loss(batch)} if source == "closure" else {}
        path = tmp_path / f"{source}.h5"
        prof = lipprof.attach(model, optimizer, path, every=3, **keywords) if attached else None
        for _ in range(7):
            optimizer.zero_grad()
            model.loss(batch).backward()
            optimizer.step()
        if prof is not None:
            prof.close()
            assert prof.last.status.label == "converged"

    train(model, attached=True)
    train(plain, attached=False)
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("side", [Choice.FIRST, Choice.SECOND])
@pytest.mark.parametrize("device", DEVICES)
def test_a_contest_trains_as_the_winner_alone(device, side):
    """With dropout, and a restart from a file within the trial."""
    arms = {"first": partial(AdamW, lr=1e-2), "second": partial(SGD, lr=0.1, momentum=0.9)}

    def build(**options):
        model, batch = gpt(device)
        model.head.register_forward_pre_hook(lambda _, x: nn.functional.dropout(x[0], 0.1))
        return model, batch, AMOS(model.named_parameters(), **arms, **options)

    def train(model, batch, optimizer, iterations):
        for iteration in iterations:

            def closure():
                optimizer.zero_grad()
                loss = model.loss(batch)
                loss.backward()
                return loss

            torch.manual_seed(iteration)
            optimizer.step(closure)

    def contested():
        model, batch, optimizer = build()
        plan = lipprof.ContestPlan(start=2, period=3)
        kind = decided_for(Entry(side))
        return (
            model,
            batch,
            optimizer,
            kind(model, optimizer, loss=lambda m: m.loss(batch), plan=plan),
        )

    model, batch, optimizer, contest = contested()
    train(model, batch, optimizer, range(4))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (model, optimizer, contest)], file)
    file.seek(0)
    model, batch, optimizer, contest = contested()
    saved = torch.load(file, map_location="cpu", weights_only=True)
    for part, state in zip((model, optimizer, contest), saved, strict=True):
        part.load_state_dict(state)
    train(model, batch, optimizer, range(4, 8))
    assert contest.entry == Entry(side)
    alone, batch, optimizer = build(rule=f"random(share={float(side is Choice.FIRST)})")
    train(alone, batch, optimizer, range(8))
    for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, theirs)
