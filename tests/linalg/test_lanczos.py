import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import eigsh

from lipprof.errors import ConfigError, NonfiniteError
from lipprof.linalg import DenseOperator, SpectrumStatus, eigenpairs
from lipprof.linalg.extremes import DENSE_LIMIT
from tests.linalg import spectra

SPECTRA = [
    spectra.clustered,
    spectra.indefinite,
    spectra.loss_surface,
    spectra.negative,
]
SIZES = [DENSE_LIMIT // 2, 300]  # the dense path and Lanczos


def extremes(values, top, bottom):
    rising = values.sort().values
    return torch.cat([rising.flip(0)[:top], rising[:bottom].flip(0)])


class CountingOperator(DenseOperator):
    calls = 0

    def matvec(self, vector):
        self.calls += 1
        return super().matvec(vector)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("top", "bottom"), [(4, 3), (3, 0), (0, 3)])
@pytest.mark.parametrize("spectrum", SPECTRA, ids=lambda f: f.__name__)
def test_pairs_match_the_prescribed_spectrum(spectrum, top, bottom, n):
    values = spectrum(n)
    matrix = spectra.with_spectrum(values)
    pairs = eigenpairs(DenseOperator(matrix), top=top, bottom=bottom, tol=1e-9, max_matvecs=3000)
    assert pairs.status is SpectrumStatus.CONVERGED, pairs.residuals
    torch.testing.assert_close(
        pairs.values, extremes(values, top, bottom), rtol=1e-7, atol=1e-12 * values.abs().max()
    )
    residual = pairs.vectors @ matrix - pairs.values[:, None] * pairs.vectors
    torch.testing.assert_close(residual.norm(dim=1), pairs.residuals, rtol=1e-2, atol=1e-13)
    gram = pairs.vectors @ pairs.vectors.T
    torch.testing.assert_close(gram, torch.eye(top + bottom).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", SIZES)
def test_a_spectrum_that_decays_below_the_precision(n):
    values = spectra.decaying(n)
    pairs = eigenpairs(
        DenseOperator(spectra.with_spectrum(values)), top=4, bottom=2, tol=1e-9, max_matvecs=500
    )
    torch.testing.assert_close(pairs.values[:4], values[:4], rtol=1e-8, atol=0)
    assert pairs.converged[:4].all()
    assert pairs.values[4:].abs().max() < 1e-12


def test_agrees_with_arpack():
    matrix = spectra.with_spectrum(spectra.loss_surface(400))
    pairs = eigenpairs(DenseOperator(matrix), top=3, bottom=3, tol=1e-8, max_matvecs=2000)
    theirs, _ = eigsh(matrix.numpy(), k=6, which="BE", tol=1e-10)
    torch.testing.assert_close(pairs.values, torch.from_numpy(theirs).flip(0), rtol=1e-8, atol=0)


def test_float32_reaches_a_residual_of_1e_5():
    matrix = spectra.with_spectrum(spectra.loss_surface(600)).float()
    pairs = eigenpairs(DenseOperator(matrix), top=5, bottom=0, tol=1e-6, max_matvecs=400)
    assert pairs.residuals.max() <= 1e-5 * pairs.values[0]
    exact = torch.linalg.eigvalsh(matrix.double()).flip(0)[:5]
    torch.testing.assert_close(pairs.values, exact, rtol=1e-5, atol=0)


def test_no_ghosts_after_many_restarts():
    values = spectra.loss_surface(300)
    op = DenseOperator(spectra.with_spectrum(values).float())
    pairs = eigenpairs(op, top=5, bottom=5, tol=1e-6, max_matvecs=1000, basis_size=16)
    torch.testing.assert_close(pairs.values, extremes(values, 5, 5), rtol=1e-3, atol=1e-4)


def test_multiplicities_are_found_when_the_krylov_space_closes():
    values = torch.zeros(200, dtype=torch.float64)
    values[:4] = 3.0
    values[4:6] = -1.0
    pairs = eigenpairs(DenseOperator(spectra.with_spectrum(values)), top=5, bottom=3, tol=1e-8)
    expected = torch.tensor([3.0, 3.0, 3.0, 3.0, 0.0, 0.0, -1.0, -1.0]).double()
    torch.testing.assert_close(pairs.values, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "matrix", [torch.zeros(150, 150), torch.eye(150)], ids=["zero", "identity"]
)
def test_every_vector_is_an_eigenvector(matrix):
    pairs = eigenpairs(DenseOperator(matrix), top=2, bottom=2)
    assert pairs.converged.all()
    torch.testing.assert_close(pairs.values, matrix[0, 0].double().expand(4), rtol=0, atol=1e-6)


def test_rank_deficient_bottom_end_is_zero():
    op = DenseOperator(spectra.with_spectrum(spectra.rank_deficient(200)))
    pairs = eigenpairs(op, top=3, bottom=3)
    torch.testing.assert_close(pairs.values[3:], torch.zeros(3).double(), rtol=0, atol=1e-12)
    assert pairs.converged.all()


def test_a_spent_budget_is_marked():
    op = DenseOperator(spectra.with_spectrum(spectra.indefinite(500)))
    pairs = eigenpairs(op, top=5, bottom=5, tol=1e-10, max_matvecs=20)
    assert pairs.status is SpectrumStatus.UNCONVERGED
    assert not pairs.converged.all()
    assert pairs.num_matvecs == 21


@pytest.mark.parametrize("n", SIZES)
def test_every_matvec_is_counted(n):
    op = CountingOperator(spectra.with_spectrum(spectra.loss_surface(n)))
    assert eigenpairs(op, top=3, bottom=2).num_matvecs == op.calls


def test_both_ends_cost_no_more_than_one_at_a_time():
    def cost(**ends):
        op = DenseOperator(spectra.with_spectrum(spectra.loss_surface(500)))
        return eigenpairs(op, **ends, tol=1e-4, max_matvecs=2000).num_matvecs

    assert cost(top=5, bottom=5) < cost(top=5, bottom=0) + cost(top=0, bottom=5)


def test_same_seed_same_result():
    op = DenseOperator(spectra.with_spectrum(spectra.loss_surface(300)))
    first, second = (eigenpairs(op, top=3, bottom=3, seed=7) for _ in range(2))
    assert torch.equal(first.vectors, second.vectors)


@pytest.mark.parametrize("n", SIZES)
def test_nan_is_refused(n):
    matrix = torch.full((n, n), torch.nan)
    with pytest.raises(NonfiniteError, match="NaN"):
        eigenpairs(DenseOperator(matrix), top=1, bottom=1)


@pytest.mark.parametrize(
    "arguments",
    [dict(top=0, bottom=0), dict(top=200, bottom=1), dict(top=5, bottom=5, basis_size=11)],
)
def test_impossible_requests_are_refused(arguments):
    op = DenseOperator(torch.eye(200))
    with pytest.raises(ConfigError):
        eigenpairs(op, **arguments)


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=30),
    top=st.integers(0, 3),
    bottom=st.integers(0, 3),
)
def test_any_small_spectrum(values, top, bottom):
    if not 1 <= top + bottom <= len(values):
        return
    spectrum = torch.tensor(values, dtype=torch.float64)
    pairs = eigenpairs(DenseOperator(spectra.with_spectrum(spectrum)), top=top, bottom=bottom)
    torch.testing.assert_close(pairs.values, extremes(spectrum, top, bottom), rtol=0, atol=1e-10)
    assert pairs.converged.all()
