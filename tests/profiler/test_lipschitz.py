"""L and its company in recorded runs, on losses whose spectrum has a closed form."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import lipprof
from lipprof.curvature import CurvatureGradients
from lipprof.errors import ConfigError
from lipprof.lipschitz import elmo_step
from lipprof.record import EIGENARC
from tests.models import problem

SAMPLES, WIDTH, LR = 64, 6, 0.05


class Quadratic(nn.Module):
    """Least squares: H = XᵀX/N whatever θ, and the same on any batch with its own X."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH, dtype=torch.float64))

    def forward(self, batch):
        inputs, targets = batch
        return ((inputs @ self.weight - targets) ** 2).mean() / 2


def batch(seed, samples=SAMPLES):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, WIDTH + 1, dtype=torch.float64).sqrt()
    inputs = torch.randn(samples, WIDTH, dtype=torch.float64, generator=generator) * scale
    return inputs, torch.randn(samples, dtype=torch.float64, generator=generator)


def loss(model, probe):
    return model(probe)


def record(path, steps=6, **settings):
    model, probe = Quadratic(), batch(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    common = dict(loss=loss, probe=[probe], every=2, top=2, bottom=1, diagonal_probes=0)
    with lipprof.attach(model, optimizer, path, **(common | settings)):
        for step in range(steps):
            optimizer.zero_grad()
            loss(model, batch(step + 1)).backward()
            optimizer.step()
    return lipprof.open_run(path), probe


def hessian(probe):
    return probe[0].T @ probe[0] / len(probe[0])


def pairs_of(probe):
    """Eigenvalues and vectors of the pairs top1, top2, bottom1."""
    values, vectors = torch.linalg.eigh(hessian(probe))
    return values[[-1, -2, 0]].numpy(), vectors.T[[-1, -2, 0]]


def test_trial_steps_fall_as_far_as_a_quadratic_does(tmp_path):
    run, probe = record(tmp_path / "run.h5", superiority=True, tol=1e-8)
    values, _ = pairs_of(probe)
    with run:
        slope = -run["grad_projection"]
        newton = slope**2 / (2 * values)
        gradient = LR * slope**2 - values * (LR * slope) ** 2 / 2
        np.testing.assert_allclose(run["newton_descent"], newton, rtol=1e-5)
        np.testing.assert_allclose(run["gradient_descent"], gradient, rtol=1e-5)
        assert (run["num_losses"] == 1 + 2 * 3).all()


def test_the_noise_floor_is_the_spread_over_batches_at_the_size_of_the_probe(tmp_path):
    further = [batch(100 + i, samples=SAMPLES // 4) for i in range(5)]
    run, probe = record(tmp_path / "run.h5", noise=further, tol=1e-8)
    _, vectors = pairs_of(probe)
    quotients = np.array([[float(v @ hessian(b) @ v) for v in vectors] for b in further])
    with run:
        expected = quotients.std(0, ddof=1) / 2  # a quarter of the samples
        np.testing.assert_allclose(run["noise_floor"], np.tile(expected, (3, 1)), rtol=1e-6)


def test_the_drift_of_a_quadratic_is_rounding_and_no_batch_explains_it(tmp_path):
    further = [batch(100 + i) for i in range(3)]
    run, _ = record(tmp_path / "run.h5", noise=further)
    with run:
        assert (run["lipschitz_drift"][1:] < 1e-6).all()


def test_a_sum_over_samples_has_the_noise_of_a_sum(tmp_path):
    def total(model, probe):
        return model(probe) * len(probe[0])

    further = [batch(100 + i, samples=SAMPLES // 4) for i in range(5)]
    run, probe = record(
        tmp_path / "run.h5", loss=total, reduction="sum", noise=further, tol=1e-8, steps=1
    )
    _, vectors = pairs_of(probe)
    per_batch = [[float(v @ hessian(b) @ v) * SAMPLES / 4 for v in vectors] for b in further]
    expected = np.std(per_batch, axis=0, ddof=1) * 2  # of four times as many independent terms
    with run:
        np.testing.assert_allclose(run["noise_floor"][0], expected, rtol=1e-6)


def test_eigenarc_lowers_l_of_a_quadratic_at_every_measurement(tmp_path):
    run, _ = record(tmp_path / "run.h5", lipschitz=("eigenarc", "drift"))
    with run:
        assert {EIGENARC[code] for code in run["eigenarc_outcome"].flat} == {"lowered"}
        lowered = 0.5 ** np.arange(1, 4)
        np.testing.assert_allclose(run["lipschitz_eigenarc"], np.tile(lowered, (3, 1)).T)
        used = {"slope": -run["grad_projection"], "curvature": run["eigenvalue"]}
        model = {name: torch.from_numpy(x.copy()) for name, x in used.items()}
        step = elmo_step(**model, lipschitz=torch.from_numpy(run["lipschitz_eigenarc"].copy()))
        np.testing.assert_allclose(run["elmo_step"], step)  # the first named serves


@pytest.mark.parametrize("settings", [{"lipschitz": "eigenarc"}, {"superiority": True}])
def test_trials_without_a_closure_are_refused(tmp_path, settings):
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with pytest.raises(ConfigError, match="Pass loss="):
        lipprof.attach(model, optimizer, tmp_path / "run.h5", top=1, bottom=1, **settings)


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"loss": lambda model: model(batch(0))}, "needs loss= and probe="),
        ({"loss": loss, "probe": [batch(0)], "noise": [batch(1)]}, "1 batches"),
    ],
)
def test_noise_that_cannot_be_measured_is_refused(tmp_path, keywords, says):
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    noise = {"noise": [batch(1), batch(2)]} | keywords
    with pytest.raises(ConfigError, match=says):
        lipprof.attach(model, optimizer, tmp_path / "run.h5", top=1, bottom=1, **noise)
    assert not (tmp_path / "run.h5").exists()


def test_an_estimator_that_fails_costs_its_own_numbers_only(tmp_path, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(CurvatureGradients, "__call__", broken)
    run, _ = record(tmp_path / "run.h5", lipschitz=("exact", "eigenarc"))
    with run:
        assert np.isnan(run["lipschitz_exact"]).all()
        assert np.isfinite(run["lipschitz_eigenarc"]).all()
        assert np.isfinite(run["eigenvalue"]).all()
        assert set(run["reason"]) == {"exact: RuntimeError: out of luck"}
    assert caplog.text.count("no exact estimate") == 1
    with pytest.raises(RuntimeError, match="out of luck"):
        record(tmp_path / "strict.h5", lipschitz="exact", strict=True)


def test_the_regret_of_elmo_is_zero_and_of_its_base_is_not(tmp_path):
    """Trained on the probe itself, ELMO takes just the step that the run file calls optimal."""
    torch.manual_seed(0)
    inputs = torch.randn(40, 5, dtype=torch.float64)
    targets = torch.sin(inputs).sum(1, keepdim=True)
    start = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)).double().state_dict()

    def regrets(build, path):
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)).double()
        model.load_state_dict(start)
        optimizer = build(model.named_parameters())

        def loss_of(model):
            return nn.functional.mse_loss(model(inputs), targets)

        with lipprof.attach(
            model, optimizer, path, loss=loss_of, every=1, top=3, bottom=0, diagonal_probes=0
        ):
            for _ in range(6):
                optimizer.zero_grad()
                loss_of(model).backward()
                optimizer.step()
        with lipprof.open_run(path) as run:
            known = np.isfinite(run["lipschitz_drift"]) & (run["converged"] == 1)
            assert known.sum() > 6
            np.testing.assert_allclose(
                run["step_deviation"][known],
                run["step_projection"][known] / run["elmo_step"][known] - 1,
                atol=1e-9,
            )
            return run["regret"][known]

    base = partial(torch.optim.SGD, lr=1e-3)
    elmo = regrets(partial(lipprof.ELMO, base=base, trust=None), tmp_path / "elmo.h5")
    np.testing.assert_allclose(elmo, 0, atol=1e-9)
    assert regrets(base, tmp_path / "sgd.h5").min() > 0.1


def test_parameters_that_stay_say_nothing_of_how_fast_curvature_moves(tmp_path):
    """With lr = 0 there is no displacement, hence no drift, and no step that guarantees descent."""
    p = problem("mlp", torch.float64)
    p.model.eval()
    optimizer = torch.optim.SGD(p.model.parameters(), lr=0.0)
    path = tmp_path / "run.h5"
    with lipprof.attach(
        p.model,
        optimizer,
        path,
        loss=p.loss,
        every=1,
        top=2,
        bottom=1,
        lipschitz=("exact", "drift"),
    ):
        for _ in range(3):
            optimizer.zero_grad()
            p.loss(p.model).backward()
            optimizer.step()
    with lipprof.open_run(path) as run:
        assert run["distance"][1:].tolist() == [0.0, 0.0]
        for name in ("lipschitz_drift", "lipschitz_step", "tensor_lipschitz"):
            assert np.isnan(run[name]).all(), name
        assert np.isnan(run["rotation"]).all()
        assert np.isfinite(run["lipschitz_along"]).all()
        np.testing.assert_array_equal(run["regret"], 1.0)
        assert not run["recommendation"].any()
