"""What the reported residuals are worth: against residuals recomputed here, pair by pair."""

import pytest
import torch

from lipprof.linalg import DenseOperator, SpectrumStatus, eigenpairs
from lipprof.linalg.krylov import KrylovBasis
from tests.linalg import spectra
from tests.linalg.operators import Counting, DiagonalOperator, Noisy, recomputed_residuals

SPECTRA = [spectra.clustered, spectra.indefinite, spectra.loss_surface, spectra.negative]


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("spectrum", SPECTRA, ids=lambda f: f.__name__)
def test_reported_residuals_are_the_recomputed_ones(spectrum, tol):
    op = Counting(DiagonalOperator(spectrum(2000).float()))
    pairs = eigenpairs(op, top=4, bottom=3, tol=tol, max_matvecs=400)
    assert pairs.num_matvecs == op.calls
    assert pairs.residual_error > 0, "expected certified residuals"
    true = recomputed_residuals(op, pairs)
    resolved = true > 3 * pairs.residual_error
    torch.testing.assert_close(pairs.residuals[resolved], true[resolved], rtol=0.1, atol=0)
    assert (true <= 1.5 * pairs.residuals).all()
    assert (pairs.residuals >= pairs.residual_error).all()


def test_certified_residuals_cost_one_product():
    op = DiagonalOperator(spectra.loss_surface(2000).float())
    spent = eigenpairs(op, top=5, bottom=5, max_matvecs=25)
    assert spent.num_matvecs == 26
    assert not spent.converged.all()


@pytest.mark.parametrize("steps", [200, 1000])
def test_the_krylov_relation_survives_restarts(steps):
    """A V = V H + v h after many restarts, to rounding."""
    op = DiagonalOperator(spectra.loss_surface(3000).float())
    basis = KrylovBasis(op, 20, device=op.device, seed=0)
    basis.insert_direction()
    for _ in range(steps):
        basis.step()
        if basis.j == basis.size:
            relation = basis.relation()
            _, weights = torch.linalg.eigh(relation[:-1], UPLO="U")
            basis.restart(weights[:, [0, 1, 2, -3, -2, -1]], relation)
    images = torch.stack([op.matvec(row) for row in basis.rows[: basis.j]]).double()
    expected = basis.relation().T @ basis.rows[: basis.j + 1].double()
    eps = torch.finfo(op.dtype).eps
    assert (images - expected).norm(dim=1).max() <= 20 * eps * op.diagonal.abs().max()


@pytest.mark.parametrize("level", [1e-3, 1e-2])
def test_products_that_do_not_repeat_get_explicit_residuals(level):
    op = Noisy(DiagonalOperator(spectra.loss_surface(2000).float()), level)
    pairs = eigenpairs(op, top=3, bottom=3, tol=1e-3, max_matvecs=100)
    assert pairs.residual_error == 0.0
    assert pairs.num_matvecs == op.calls
    assert pairs.status is SpectrumStatus.UNCONVERGED
    again = recomputed_residuals(op, pairs)
    torch.testing.assert_close(pairs.residuals, again, rtol=0.5, atol=0)


def test_a_slightly_nonsymmetric_operator_shows_its_asymmetry():
    values = spectra.loss_surface(600)
    skew = torch.randn(600, 600, dtype=torch.float64)
    matrix = spectra.with_spectrum(values) + 1e-4 * (skew - skew.T)
    op = DenseOperator(matrix)
    pairs = eigenpairs(op, top=3, bottom=2, tol=1e-3, max_matvecs=200, basis_size=200)
    true = recomputed_residuals(op, pairs)
    resolved = true > 3 * pairs.residual_error
    assert resolved.any()
    torch.testing.assert_close(pairs.residuals[resolved], true[resolved], rtol=0.1, atol=0)
    assert (true <= 1.5 * pairs.residuals).all()


def test_a_single_pair_is_measured_by_its_own_product():
    op = DiagonalOperator(spectra.indefinite(500).float())
    pairs = eigenpairs(op, top=1, bottom=0)
    assert pairs.residual_error == 0.0
    torch.testing.assert_close(pairs.residuals, recomputed_residuals(op, pairs), rtol=0.01, atol=0)


@pytest.mark.parametrize("spectrum", [spectra.loss_surface, spectra.indefinite])
def test_what_float32_cannot_resolve_is_not_called_converged(spectrum):
    op = DiagonalOperator(spectrum(20_000).float())
    pairs = eigenpairs(op, top=3, bottom=0, tol=1e-9, max_matvecs=250)
    assert pairs.status is SpectrumStatus.UNCONVERGED
    if spectrum is spectra.loss_surface:
        assert pairs.residuals.max() <= 1e-5 * pairs.values[0]
