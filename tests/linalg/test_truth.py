"""Large and awkward spectra: the values are known since the operator is diagonal."""

import pytest
import torch

from lipprof.errors import ConfigError
from lipprof.linalg import SpectrumStatus, eigenpairs
from tests.linalg import spectra
from tests.linalg.operators import DiagonalOperator, recomputed_residuals


def extremes(values, top, bottom):
    rising = values.double().sort().values
    return torch.cat([rising.flip(0)[:top], rising[:bottom].flip(0)])


@pytest.mark.parametrize(
    "n", [2, 3, 97, 10_000, 1_000_000, pytest.param(10_000_000, marks=pytest.mark.slow)]
)
def test_any_size(n):
    values = spectra.loss_surface(max(n, 8))[-n:].float()
    op = DiagonalOperator(values)
    top, bottom = (1, 1) if n < 10 else (5, 2)
    pairs = eigenpairs(op, top=top, bottom=bottom, basis_size=min(n, 40), max_matvecs=200)
    assert pairs.status is SpectrumStatus.CONVERGED, pairs
    expected = extremes(values, top, bottom)
    error = (pairs.values - expected).abs()
    assert (error <= pairs.residuals + 1e-6 * values.abs().max()).all()
    true = recomputed_residuals(op, pairs)
    assert (true <= 1.5 * pairs.residuals + 1e-7).all()


@pytest.mark.parametrize("basis_size", [14, 20, 40])
def test_no_pair_twice_however_many_restarts(basis_size):
    values = spectra.loss_surface(5000).float()
    pairs = eigenpairs(
        DiagonalOperator(values), top=6, bottom=2, tol=1e-5, max_matvecs=600, basis_size=basis_size
    )
    torch.testing.assert_close(pairs.values, extremes(values, 6, 2), rtol=1e-4, atol=1e-5)
    gram = (pairs.vectors @ pairs.vectors.T).double()
    torch.testing.assert_close(gram, torch.eye(8).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("top", "bottom"), [(3, 0), (4, 2), (0, 2)])
def test_every_copy_of_a_multiple_outlier_is_found_where_asked_for(top, bottom, dtype):
    values = spectra.loss_surface(3000).to(dtype)
    values[1:3] = values[0]
    values[-1] = values[-2]
    op = DiagonalOperator(values)
    pairs = eigenpairs(op, top=top, bottom=bottom, seek_multiples=True)
    torch.testing.assert_close(pairs.values, extremes(values, top, bottom), rtol=1e-5, atol=0)
    assert pairs.converged.all()


@pytest.mark.parametrize("start", ["random", "eigenvector", "invariant"])
def test_a_start_vector_changes_the_way_and_not_the_answer(start):
    values = spectra.loss_surface(2000).float()
    vector = torch.randn(2000)
    if start != "random":
        vector = torch.zeros(2000)
        vector[0 if start == "eigenvector" else slice(0, 3)] = 2.0
    pairs = eigenpairs(DiagonalOperator(values), top=4, bottom=2, start=vector, tol=1e-4)
    torch.testing.assert_close(pairs.values, extremes(values, 4, 2), rtol=1e-4, atol=0)


@pytest.mark.parametrize("start", [torch.zeros(200), torch.ones(3), torch.full((200,), torch.nan)])
def test_a_start_vector_without_direction_is_refused(start):
    with pytest.raises(ConfigError, match="start"):
        eigenpairs(DiagonalOperator(torch.arange(200.0)), top=1, bottom=1, start=start)
