"""Diagonal blocks of an attached run, beside eigenvalues of the blocks of a dense Hessian."""

import numpy as np
import pytest
import torch

import lipprof
from lipprof.curvature import ParameterView
from lipprof.errors import ConfigError
from lipprof.profiler.budget import Budget
from lipprof.profiler.estimates import blocks
from lipprof.record import Status, open_run
from lipprof.settings import Settings
from tests.curvature.oracles import finite_difference_hessian
from tests.models import problem

SPECS = {
    "tensor": [[0], [1], [2], [3]],
    "module": [[0, 1], [2, 3]],
    "*weight": [[0, 2]],
    ("0", "*bias"): [[0, 1], [1, 3]],
}
DEFAULTS = dict(every=2, top=2, bottom=1, tol=1e-8, max_matvecs=500, diagonal_probes=2)


def train(p, path, iterations=3, **settings):
    optimizer = torch.optim.SGD(p.model.parameters(), lr=0.1)
    keywords = DEFAULTS | settings
    with lipprof.attach(p.model, optimizer, path, loss=p.loss, **keywords) as profiler:
        for _ in range(iterations):
            optimizer.zero_grad()
            p.loss(p.model).backward()
            optimizer.step()
    return profiler


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_recorded_extremes_are_those_of_the_dense_blocks(spec, tmp_path):
    p = problem("mlp", torch.float64)
    p.model.eval()
    dense = finite_difference_hessian(lambda: p.loss(p.model), p.model.parameters())
    ends = np.cumsum([0, *(x.numel() for x in p.model.parameters())])
    train(p, tmp_path / "run.h5", blocks=spec)
    with open_run(tmp_path / "run.h5") as run:
        assert run.block_names == {
            "tensor": ["0.weight", "0.bias", "3.weight", "3.bias"],
            "module": ["0", "3"],
            "*weight": ["*weight"],
        }.get(spec, list(spec))
        for i, parameters in enumerate(SPECS[spec]):
            index = np.concatenate([np.arange(ends[k], ends[k + 1]) for k in parameters])
            values = np.linalg.eigvalsh(dense[index][:, index].numpy())
            found = run["block_smallest"][0, i], run["block_largest"][0, i]
            np.testing.assert_allclose(found, values[[0, -1]], rtol=1e-4, atol=1e-6)
        assert (run["block_converged"] == 1).all()
        top = run["eigenvalue"][:, :1]
        assert (run["block_largest"] <= top * (1 + 1e-6)).all(), "Cauchy interlacing"
        assert len(np.unique(run["block_largest"][:, 0])) == len(run) == 2, "it moves"


def test_blocks_are_paid_for_and_off_by_default(tmp_path):
    spent = {}
    for spec in (None, "tensor"):
        train(problem("mlp"), tmp_path / f"{spec}.h5", blocks=spec, tol=1e-3)
        with open_run(tmp_path / f"{spec}.h5") as run:
            spent[spec] = run["num_matvecs"]
            named = run.block_names
    plain = open_run(tmp_path / "None.h5")
    assert plain.block_names == []
    assert plain["block_largest"].shape == (2, 0)
    assert "block" not in plain.to_xarray().sizes
    assert len(named) == 4
    p = problem("mlp")
    with lipprof.surface(p.model, p.loss) as surface:
        alone = int(surface.blocks("tensor", tol=1e-3, max_matvecs=500).num_matvecs.sum())
    assert spent["tensor"][0] == spent[None][0] + alone


def test_a_failure_leaves_the_rest_of_the_measurement(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(blocks, "block_spectra", fail)
    p = problem("mlp")
    train(p, tmp_path / "run.h5", blocks="module", tol=1e-3)
    with open_run(tmp_path / "run.h5") as run:
        assert (run["status"] == Status.CONVERGED).all()
        assert np.isfinite(run["eigenvalue"]).all()
        assert np.isfinite(run["tensor_curvature"]).all()
        assert np.isnan(run["block_largest"]).all()
        assert not run["block_converged"].any()
        assert set(run["reason"]) == {"blocks: RuntimeError: no such luck"}
    with pytest.raises(RuntimeError, match="no such luck"):
        train(problem("mlp"), tmp_path / "strict.h5", blocks="module", strict=True)


def test_a_pattern_without_a_match_is_refused_before_there_is_a_file(tmp_path):
    with pytest.raises(ConfigError, match="matches no parameter"):
        train(problem("mlp"), tmp_path / "run.h5", blocks=("0", "attention"))
    assert not (tmp_path / "run.h5").exists()


def test_settings_outlive_toml_and_budget_gives_blocks_up_first():
    import tomllib

    settings = Settings(blocks=("a*", "b"), max_overhead=0.1)
    assert Settings(**tomllib.loads(settings.to_toml())) == settings
    few, many = Budget(settings), Budget(settings, blocks=4)
    assert many.full.expected_matvecs > few.full.expected_matvecs
    for budget in (few, many):
        budget.price(build=0.1, matvec=0.01)
    assert min(many._foreseen.values()) == min(few._foreseen.values())


def test_names_are_those_of_the_view():
    view = ParameterView.of(problem("mlp").model)
    assert blocks.block_names(view, Settings()) == ()
    assert blocks.block_names(view, Settings(blocks="module")) == ("0", "3")
