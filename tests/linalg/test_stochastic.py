import pytest
import torch

from lipprof.errors import NonfiniteError
from lipprof.linalg import DenseOperator, hutchinson
from tests.linalg import spectra


def test_a_diagonal_matrix_needs_one_probe():
    diagonal = torch.randn(50, dtype=torch.float64)
    estimate = hutchinson(DenseOperator(torch.diag(diagonal)), probes=1)
    torch.testing.assert_close(estimate.diagonal, diagonal)
    assert estimate.trace == pytest.approx(float(diagonal.sum()))


def test_trace_lies_within_its_standard_error():
    matrix = spectra.with_spectrum(spectra.indefinite(100))
    deviations = []
    for seed in range(40):
        estimate = hutchinson(DenseOperator(matrix), probes=20, seed=seed)
        deviations.append((estimate.trace - float(matrix.trace())) / estimate.trace_stderr)
    spread = torch.tensor(deviations)
    assert spread.abs().max() < 5
    assert 0.7 < spread.std() < 1.4


def test_diagonal_converges():
    matrix = spectra.with_spectrum(spectra.indefinite(60))
    off_diagonal = (matrix - torch.diag(matrix.diagonal())).norm(dim=1)
    estimate = hutchinson(DenseOperator(matrix), probes=2000)
    error = (estimate.diagonal - matrix.diagonal()).abs()
    assert (error < 5 * off_diagonal / 2000**0.5).all()


def test_the_same_seed_draws_the_same_probes():
    op = DenseOperator(spectra.with_spectrum(spectra.indefinite(30)))
    assert torch.equal(
        hutchinson(op, probes=3, seed=1).diagonal, hutchinson(op, probes=3, seed=1).diagonal
    )


def test_nan_is_refused():
    with pytest.raises(NonfiniteError):
        hutchinson(DenseOperator(torch.full((3, 3), torch.nan)), probes=2)
