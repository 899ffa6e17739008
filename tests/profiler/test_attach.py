import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import lipprof
from lipprof.errors import AttachError, ConfigError
from lipprof.optim import AMOS, ELMO, FOSI, Sophia
from lipprof.record import RunWriter
from tests.models import problem
from tests.profiler import loops

SMALL = {"every": 5, "top": 2, "bottom": 2, "tol": 0.01, "diagonal_probes": 3}


def run_loop(path, *, loss=None, make_optimizer=loops.sgd_momentum, iterations=20, **settings):
    p = problem("mlp")
    optimizer = make_optimizer(p.model.parameters())
    with lipprof.attach(
        p.model, optimizer, path, loss=loss or p.loss, **(SMALL | settings)
    ) as prof:
        for iteration in range(iterations):
            optimizer.zero_grad()
            p.loss(p.model, p.batch(iteration)).backward()
            optimizer.step()
    return prof


def test_what_is_recorded_is_what_happened(tmp_path):
    """One measurement's numbers against a recomputation from the definitions."""
    p = problem("mlp", torch.float64)
    p.model.eval()
    optimizer = torch.optim.SGD(p.model.parameters(), lr=0.05)
    path = tmp_path / "run.h5"
    thetas = []
    with lipprof.attach(
        p.model, optimizer, path, loss=p.loss, every=2, top=2, bottom=2, tol=1e-8, alpha=0.0
    ):
        for iteration in range(5):
            if iteration % 2 == 0:
                thetas.append(nn.utils.parameters_to_vector(p.model.parameters()).detach())
            optimizer.zero_grad()
            p.loss(p.model, p.batch(iteration)).backward()
            optimizer.step()
            if iteration == 4:
                after = nn.utils.parameters_to_vector(p.model.parameters()).detach()
    with lipprof.open_run(path) as run:
        last = run.measurement(-1)
        nn.utils.vector_to_parameters(thetas[2], p.model.parameters())
        pairs = lipprof.spectrum(p.model, p.loss, top=2, bottom=2, tol=1e-8)
        np.testing.assert_allclose(last.eigenvalue, pairs.values, rtol=1e-8)
        gradient = torch.cat([
            g.flatten() for g in torch.autograd.grad(p.loss(p.model), p.model.parameters())
        ])
        slopes = (pairs.vectors @ gradient).abs().numpy()
        np.testing.assert_allclose(-last.grad_projection, slopes, rtol=1e-5)
        assert last.grad_norm == pytest.approx(float(gradient.norm()))
        assert last.distance == pytest.approx(float((thetas[2] - thetas[1]).norm()))
        step = (pairs.vectors @ (after - thetas[2])).numpy()
        np.testing.assert_allclose(np.abs(last.step_projection), np.abs(step), rtol=1e-4)
        np.testing.assert_allclose(last.eigenvector_mass.sum(1), 1.0, rtol=1e-9)
        np.testing.assert_allclose(
            last.newton_threshold[:2], 3 * last.eigenvalue[:2] ** 2 / slopes[:2], rtol=1e-5
        )
        drift = np.abs(last.eigenvalue - run["eigenvalue"][-2]) / last.distance
        matched = last.overlap > 0.9
        assert matched.any()
        np.testing.assert_allclose(last.lipschitz_drift[matched], drift[matched], rtol=1e-6)
        assert last.learning_rate == 0.05
        assert run.finished


def test_first_measurement_has_no_lipschitz_and_no_answer(tmp_path):
    run_loop(tmp_path / "run.h5", iterations=1)
    with lipprof.open_run(tmp_path / "run.h5") as run:
        assert np.isnan(run["lipschitz_drift"]).all()
        assert (run["recommendation"] == 0).all()


def test_recommendation_is_invariant_under_a_scaled_loss(tmp_path):
    """Gradients of one loss train; the probe's loss is scaled, which changes L, λ, γ alike."""
    p = problem("mlp")

    def recommend(factor, path):
        def loss(model):
            return factor * p.loss(model)

        torch.manual_seed(0)
        return run_loop(path, loss=loss, iterations=31).recommendation

    plain, scaled = (recommend(c, tmp_path / f"{c}.h5") for c in (1.0, 1000.0))
    np.testing.assert_array_equal(plain.choice, scaled.choice)
    assert set(plain.choice) <= {1, 2}
    np.testing.assert_allclose(
        scaled.evidence.lipschitz, 1000 * plain.evidence.lipschitz, rtol=1e-3
    )
    np.testing.assert_allclose(scaled.threshold, 1000 * plain.threshold, rtol=1e-3)


def raise_error(model):
    raise ValueError("out of\nballoons")


def out_of_memory(model):
    return torch.empty(1 << 60)


def nan(model):
    return next(model.parameters()).sum() * torch.nan


@pytest.mark.parametrize(
    ("loss", "reason"),
    [(raise_error, "out of"), (nan, "nan"), (out_of_memory, "memory")],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_failing_measurement_is_recorded_and_training_goes_on(loss, reason, tmp_path, caplog):
    def final(**arguments):
        torch.manual_seed(0)
        prof = run_loop(tmp_path / "run.h5", **arguments)
        return torch.cat([x.detach().flatten() for x in prof.model.parameters()])

    bare = final(schedule=lambda iteration: False)
    failing = final(loss=loss)
    assert torch.equal(bare, failing)
    with lipprof.open_run(tmp_path / "run.h5") as run:
        assert run["status"].tolist() == [2, 2, 2, 2]
        assert all(reason in text for text in run["reason"])
        assert np.isnan(run["eigenvalue"]).all()
    assert "training goes on" in caplog.text


def test_strict_raises(tmp_path):
    with pytest.raises(ValueError, match="balloons"):
        run_loop(tmp_path / "run.h5", loss=raise_error, strict=True)


def test_a_lost_run_file_does_not_stop_training(tmp_path, monkeypatch, caplog):
    def full(self, measurement):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunWriter, "append", full)
    prof = run_loop(tmp_path / "run.h5")
    assert prof.iteration == 20
    assert caplog.text.count("No space left") == 1


def test_a_second_profiler_is_refused_until_the_first_is_closed(tmp_path):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = lipprof.attach(model, optimizer, tmp_path / "a.h5", top=1, bottom=1)
    with pytest.raises(AttachError, match="already"):
        lipprof.attach(model, optimizer, tmp_path / "b.h5", top=1, bottom=1)
    first.close()
    first.close()
    lipprof.attach(model, optimizer, tmp_path / "b.h5", top=1, bottom=1).close()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(top=3, bottom=3), "n=4"),
        (dict(evry=3), "evry"),
        (dict(every=0), "every=0"),
        (dict(profile="nonesuch"), "nonesuch.*default"),
        (dict(probe=[1]), "needs loss="),
    ],
)
def test_mistakes_are_named_before_training(arguments, match, tmp_path):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=match):
        lipprof.attach(model, optimizer, tmp_path / "run.h5", **(dict(top=1, bottom=1) | arguments))
    assert not (tmp_path / "run.h5").exists()


def test_only_the_optimizers_parameters_are_profiled(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with lipprof.attach(model, optimizer, tmp_path / "run.h5", top=1, bottom=1) as prof:
        assert prof.view.names == ("1.weight", "1.bias")


def test_amos_follows_the_live_recommendation(tmp_path):
    def amos(parameters):
        return AMOS(
            problem_model.named_parameters(),
            first=lambda group: torch.optim.SGD(group, lr=0.05),
            second=lambda group: Sophia(group, lr=0.01),
        )

    p = problem("mlp")
    problem_model = p.model
    optimizer = amos(None)
    path = tmp_path / "run.h5"
    with lipprof.attach(p.model, optimizer, path, loss=p.loss, dwell=1, **SMALL) as prof:
        for iteration in range(26):
            optimizer.zero_grad()
            p.loss(p.model, p.batch(iteration)).backward()
            optimizer.step()
        np.testing.assert_array_equal(
            [optimizer.assigned[name] for name in prof.view.names], prof.recommendation.choice
        )
    with lipprof.open_run(path) as run:
        decided = run["recommendation"] > 0
        assert decided[1:].all()
        np.testing.assert_array_equal(run["assigned"][decided], run["recommendation"][decided])
        assert optimizer.switches
        assert [(s.iteration, s.name, s.to, s.reason) for s in run.switches()] == [
            (s.iteration, s.name, s.choice, s.reason) for s in optimizer.switches
        ]


def test_a_run_is_finished_at_exit_without_close(tmp_path):
    script = f"""
import torch, lipprof
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
lipprof.attach(model, optimizer, {str(tmp_path / "run.h5")!r}, every=1, top=1, bottom=1)
for _ in range(3):
    model(torch.ones(2, 3)).square().mean().backward()
    optimizer.step()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    with lipprof.open_run(tmp_path / "run.h5") as run:
        assert run.finished
        assert len(run) == 3


@pytest.mark.parametrize("kind", [ELMO, FOSI])
def test_converged_pairs_are_lent_with_their_lipschitz_parameters(kind, tmp_path):
    prof = run_loop(
        tmp_path / "run.h5",
        make_optimizer=lambda parameters: kind(parameters, loops.sgd_momentum),
        iterations=11,
        strict=True,
    )
    lent, last = prof.optimizer.eigenspaces, prof.last
    converged = last.converged == 1
    assert lent is not None
    np.testing.assert_array_equal(lent.values, last.eigenvalue[converged])
    np.testing.assert_array_equal(lent.lipschitz, last.lipschitz_drift[converged])
    assert np.isfinite(lent.lipschitz.numpy()).any()
    gram = lent.vectors @ lent.vectors.T
    torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)
