import math

import pytest
import torch

from lipprof.errors import NonfiniteError
from lipprof.linalg import DenseOperator, eigenpairs, hutchinson
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


def test_standard_error_of_the_diagonal_is_right_in_the_mean_square():
    op = DenseOperator(spectra.with_spectrum(spectra.indefinite(80)))
    ratios = []
    for seed in range(20):
        estimate = hutchinson(op, probes=10, seed=seed)
        error = estimate.diagonal - op.matrix.diagonal()
        ratios.append(estimate.diagonal_stderr.square().mean() / error.square().mean())
    assert torch.stack(ratios).mean() == pytest.approx(1.0, rel=0.25)
    assert hutchinson(op, probes=1).diagonal_stderr.isnan().all()


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


def test_known_pairs_leave_the_estimate_unbiased_and_lower_its_error():
    matrix = spectra.with_spectrum(torch.cat([torch.tensor([90.0, 40.0]), spectra.indefinite(58)]))
    pairs = eigenpairs(DenseOperator(matrix), top=2, bottom=0)
    estimates = {
        known: torch.stack([
            hutchinson(
                DenseOperator(matrix), probes=4, seed=seed, known=pairs if known else None
            ).diagonal
            for seed in range(200)
        ])
        for known in (False, True)
    }
    spread = {known: values.std(0) for known, values in estimates.items()}
    bias = (estimates[True].mean(0) - matrix.diagonal()).abs()
    assert (bias < 5 * spread[True] / 200**0.5).all()
    assert spread[True].mean() < 0.5 * spread[False].mean()


def test_parts_halves_and_trace_are_of_the_same_probes():
    op = DenseOperator(spectra.with_spectrum(spectra.indefinite(30)))
    pairs = eigenpairs(op, top=2, bottom=1)
    estimate = hutchinson(op, probes=5, parts=[4, 16, 10], known=pairs)
    sums = torch.stack([part.sum() for part in estimate.diagonal.split([4, 16, 10])])
    torch.testing.assert_close(estimate.part_traces.mean(0), sums)
    assert estimate.trace == pytest.approx(float(estimate.diagonal.sum()))
    first = hutchinson(op, probes=1, known=pairs)
    torch.testing.assert_close(first.diagonal, first.halves[0])
    assert math.isnan(first.trace_stderr)


def test_halves_are_independent_estimates():
    op = DenseOperator(spectra.with_spectrum(spectra.indefinite(60)))
    errors = torch.stack([
        hutchinson(op, probes=2, seed=seed).halves - op.matrix.diagonal() for seed in range(400)
    ])
    product = (errors[:, 0] * errors[:, 1]).mean(1)
    assert product.mean().abs() < 4 * product.std() / 400**0.5
    assert errors.square().mean() > 10 * product.mean().abs()
