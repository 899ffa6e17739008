import pytest
import torch

from lipprof.errors import ConfigError
from lipprof.linalg import eigenpairs, plan_basis
from lipprof.linalg.memory import default_basis_size
from tests.linalg import spectra
from tests.linalg.allocations import peak_memory
from tests.linalg.operators import DiagonalOperator, recomputed_residuals

MIB = 2**20


@pytest.mark.parametrize(("budget_vectors", "size"), [(21, 11), (50, 40), (90, 64)])
def test_peak_is_what_the_plan_says(budget_vectors, size):
    n = 300_000
    op = DiagonalOperator(spectra.loss_surface(n).float())
    plan = plan_basis(n, 7, budget_vectors * 4 * n, torch.float32, "cpu")
    assert plan.size == size
    with peak_memory() as peak:
        eigenpairs(op, top=5, bottom=2, basis_size=plan.size, tol=0.0, max_matvecs=size + 5)
    assert peak.bytes == pytest.approx(plan.bytes, rel=0.1)


def test_the_plan_fits_its_budget_and_grows_with_it():
    sizes = []
    for budget in range(35 * MIB, 500 * MIB, 7 * MIB):
        plan = plan_basis(1_000_000, 2, budget, torch.float32, "cpu")
        assert plan.bytes <= budget
        sizes.append(plan.size)
    assert sizes == sorted(sizes)
    assert plan.size == default_basis_size(2)


def test_what_does_not_fit_on_the_accelerator_goes_to_the_host():
    n = 1_000_000
    plan = plan_basis(n, 10, 60 * MIB, torch.float32, "cuda")
    assert plan.device.type == "cpu"
    assert plan.size == default_basis_size(10)
    assert plan.bytes == 12 * 4 * n
    assert plan.host_bytes == 81 * 4 * n
    assert plan_basis(n, 10, 600 * MIB, torch.float32, "cuda").device.type == "cuda"


def test_host_memory_is_limited_too():
    with pytest.raises(ConfigError, match="MiB"):
        plan_basis(1_000_000, 10, 60 * MIB, torch.float32, "cuda", host_bytes=10 * MIB)


def test_a_budget_under_the_least_basis_is_refused_with_numbers():
    with pytest.raises(ConfigError, match=r"at least 95 MiB .* the budget is 40 MiB"):
        plan_basis(1_000_000, 10, 40 * MIB, torch.float32, "cpu")


def test_a_basis_on_another_device_gives_the_same_pairs():
    op = DiagonalOperator(spectra.loss_surface(2000).float())
    here = eigenpairs(op, top=2, bottom=1)
    there = eigenpairs(op, top=2, bottom=1, basis_device="cpu")
    assert torch.equal(here.values, there.values)


@pytest.mark.gpu
def test_a_basis_on_the_host_serves_an_operator_on_the_gpu():
    op = DiagonalOperator(spectra.loss_surface(200_000).float().cuda())
    pairs = eigenpairs(op, top=5, bottom=2, basis_device="cpu")
    assert pairs.vectors.device.type == "cuda"
    assert pairs.converged.all()
    assert recomputed_residuals(op, pairs).max() <= 1e-3 * 40
