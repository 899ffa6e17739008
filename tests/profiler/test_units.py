"""Answers per module and per chunk: what the run file then holds, and that AMOS follows it."""

from functools import partial

import numpy as np
import pytest
import torch
from rich.console import Console

import lipprof
from lipprof.curvature import ParameterView, Partition
from lipprof.errors import ConfigError
from lipprof.optim import AMOS
from lipprof.report import tables
from tests.models import problem

SMALL = {"every": 2, "top": 2, "bottom": 1, "tol": 1e-6, "diagonal_probes": 4}
SGD = partial(torch.optim.SGD, lr=0.05)


def run_loop(path, p, optimizer, iterations=7, **settings):
    with lipprof.attach(p.model, optimizer, path, loss=p.loss, **(SMALL | settings)) as prof:
        for iteration in range(iterations):
            optimizer.zero_grad()
            p.loss(p.model, p.batch(iteration)).backward()
            optimizer.step()
    return prof


def sums(per_entry, sizes):
    return np.stack([part.sum(-1) for part in np.split(per_entry, np.cumsum(sizes)[:-1], -1)], -1)


@pytest.mark.parametrize("units", ["module", 10, 10**9])
def test_numbers_of_units_are_sums_over_entries(units, tmp_path):
    """Against the same run by single entries, the finest units there are."""
    series = {}
    for name, setting in (("units", units), ("entries", 1)):
        torch.manual_seed(0)
        p = problem("mlp", torch.float64)
        p.model.eval()
        run_loop(tmp_path / name, p, SGD(p.model.parameters()), units=setting, denoise=False)
        with lipprof.open_run(tmp_path / name) as run:
            wanted = (
                "eigenvector_mass",
                "tensor_grad_norm",
                "tensor_curvature",
                "tensor_lipschitz",
            )
            series[name] = {n: run[n] for n in wanted} | {"distance": run["distance"]}
            if name == "units":
                sizes, names = run.tensor_numel, run.tensor_names
                kind, recorded = run.unit_kind, run.settings.units
    assert (kind, recorded) == ("module" if units == "module" else "chunk", units)
    partition = Partition.of(p.model.named_parameters(), units)
    assert names == list(partition.names)
    assert sizes.tolist() == list(partition.numel)
    found, entries = series["units"], series["entries"]
    np.testing.assert_allclose(
        found["eigenvector_mass"], sums(entries["eigenvector_mass"], sizes), rtol=1e-9
    )
    norms = np.sqrt(sums(entries["tensor_grad_norm"] ** 2, sizes))
    np.testing.assert_allclose(found["tensor_grad_norm"], norms, rtol=1e-9)
    means = sums(entries["tensor_curvature"], sizes) / sizes
    np.testing.assert_allclose(found["tensor_curvature"], means, rtol=1e-7, atol=1e-12)
    moved = np.abs(np.diff(means, axis=0)) / found["distance"][1:, None]
    np.testing.assert_allclose(found["tensor_lipschitz"][1], moved[0], rtol=1e-6, atol=1e-9)


def test_amos_sets_the_units_and_follows_them(tmp_path):
    p = problem("mlp")
    amos = AMOS(
        p.model.named_parameters(), SGD, partial(lipprof.Sophia, lr=0.01), units=10, start="second"
    )
    prof = run_loop(tmp_path / "run.h5", p, amos, rule="threshold", threshold=1e-30, denoise=False)
    assert amos.switches
    with lipprof.open_run(tmp_path / "run.h5") as run:
        assert run.tensor_names == list(amos.assigned)
        assert run["status"].max() <= 1
        assert run["assigned"][-1].tolist() == [int(c) for c in amos.assigned.values()]
        console = Console(width=140, record=True)
        console.print(tables.report(run, len(run) - 1))
        text = console.export_text()
    assert list(prof.recommendation.names) == list(amos.assigned)
    assert f"in {len(amos.assigned)} chunks" in text
    assert "Use a first-order optimizer for every chunk" in text
    assert "0.weight[:10]" in text


def test_an_amos_that_could_not_follow_is_refused_when_attaching(tmp_path):
    p = problem("mlp")
    amos = AMOS(p.model.named_parameters(), SGD, SGD, units=10)
    with pytest.raises(ConfigError, match=r"does not fit.*by the same units"):
        lipprof.attach(p.model, amos, tmp_path / "run.h5", loss=p.loss, units="tensor")
    nameless = AMOS(p.model.parameters(), SGD, SGD)
    with pytest.raises(ConfigError, match="named_parameters"):
        lipprof.attach(p.model, nameless, tmp_path / "run.h5", loss=p.loss)
    with pytest.raises(ConfigError, match="Invalid settings.*units"):
        lipprof.attach(p.model, amos, tmp_path / "run.h5", loss=p.loss, units="layer")
    assert not (tmp_path / "run.h5").exists()
    run_loop(tmp_path / "run.h5", p, nameless, diagonal_probes=0)  # there is nothing to follow


def test_a_partition_of_the_model_serves_amos_with_groups(tmp_path):
    p = problem("mlp")
    named = list(p.model.named_parameters())
    groups = [
        {"params": [(n, x) for n, x in named if x.ndim == 2], "weight_decay": 0.1},
        {"params": [(n, x) for n, x in named if x.ndim != 2]},
    ]
    partition = lipprof.Partition.of(named, 10)
    amos = AMOS(groups, SGD, SGD, units=partition)
    prof = run_loop(tmp_path / "run.h5", p, amos)
    assert list(prof.recommendation.names) == list(partition.names)
    assert prof.last.status.name == "CONVERGED"


def test_modules_that_are_apart_cannot_be_units_of_a_flat_vector():
    tensors = {n: torch.ones(2, requires_grad=True) for n in ("a.w", "b.w", "a.v")}
    view = ParameterView(tensors.items())
    with pytest.raises(ConfigError, match="do not follow each other"):
        Partition.of_view(view, "module")
    assert Partition.of(tensors.items(), "module").names == ("a", "b")
