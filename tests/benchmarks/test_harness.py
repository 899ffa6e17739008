"""The benchmark runs, from the command line to the files; and its measure of truth is true."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from tests.benchmarks import results
from tests.benchmarks.__main__ import SECTIONS, chosen
from tests.benchmarks.engines import plain_gauss_newton, plain_product
from tests.benchmarks.networks import TokenCrossEntropy
from tests.benchmarks.problems import Problem
from tests.benchmarks.solvers import Found, calibrated_arpack, judge


@pytest.fixture
def softmax_regression():
    """Convex, linear in θ: the Hessian is the Gauss-Newton matrix, in closed form X ⊗ (P − ppᵀ)."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 8, generator=generator)
    targets = torch.randint(3, (40,), generator=generator)
    model = nn.Linear(8, 3, bias=False)
    p = model(inputs).softmax(-1).detach()
    curved = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    matrix = torch.einsum("ni,nj,nab->aibj", inputs, inputs, curved).reshape(24, 24) / 40
    return Problem("softmax", "", model, inputs, targets, TokenCrossEntropy()), matrix


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # of forward mode
@pytest.mark.parametrize("build", [plain_product, plain_gauss_newton])
def test_neutral_products_are_the_closed_form(softmax_regression, build):
    problem, matrix = softmax_regression
    vector = torch.randn(24)
    torch.testing.assert_close(build(problem)(vector), matrix @ vector, rtol=1e-4, atol=1e-6)


def test_judge_measures_residuals_by_the_extreme_value_of_their_end(softmax_regression):
    problem, matrix = softmax_regression
    values, vectors = torch.linalg.eigh(matrix.double())
    pairs = Found(values[-2:].flip(0), vectors[:, -2:].T.flip(0).float(), top=2, products=0)
    exact = judge(pairs, plain_product(problem))
    assert exact.worst < 1e-5
    shifted = Found(pairs.values + 0.01 * values[-1], pairs.vectors, top=2, products=0)
    assert judge(shifted, plain_product(problem)).worst == pytest.approx(0.01 / 1.01, rel=1e-3)


def test_calibrated_eigsh_meets_the_criterion_and_no_looser_setting_does(softmax_regression):
    problem, _ = softmax_regression
    way = calibrated_arpack(problem, "LA", 2)
    truth = plain_product(problem)
    found = way.solve(truth, problem)
    assert judge(found, truth).meets
    assert found.products <= 60


def test_parts_are_chosen_by_section_problem_or_both():
    everything = chosen([])
    assert len(everything) == sum(len(section.subjects) for section in SECTIONS)
    assert {subject for _, subject in chosen(["cnn"])} == {"cnn"}
    assert {section.name for section, _ in chosen(["hvp"])} == {"hvp"}
    assert [(s.name, x) for s, x in chosen(["hvp/gpt"])] == [("hvp", "gpt")]


@pytest.mark.slow
@pytest.mark.skipif(
    not (find_spec("curvlinops") and find_spec("hessian_eigenthings")),
    reason="the peers are in the extra lipprof[bench]",
)
def test_the_quick_benchmark_runs_on_data_it_makes_itself(tmp_path):
    only = ("hvp/cnn", "spectrum/cnn", "memory/cnn", "scaling/1e5", "overhead/tiny")
    arguments = [f"--only={name}" for name in only]
    command = [sys.executable, "-m", "tests.benchmarks", "--quick", *arguments]
    subprocess.run([*command, "--data", tmp_path, "--out", tmp_path], check=True, timeout=600)
    parts = results.read(tmp_path / "results-cpu.json")
    assert set(parts) == set(only)
    for part in parts.values():
        for row in part.rows:
            expected = "differences" in row["method"] or "default tol" in row["method"]
            assert "note" not in row or expected, row
    readme = (tmp_path / "README.md").read_text()
    assert all(section.title in readme for section in SECTIONS)
    assert "synthetic data" in readme
