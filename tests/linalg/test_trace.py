import pytest
import torch

from lipprof.errors import ConfigError, NonfiniteError
from lipprof.linalg import DenseOperator, hutchinson, xtrace
from tests.linalg import spectra
from tests.linalg.operators import Counting

REPEATS = 40


def errors(values, *, matvecs, estimate):
    """Deviations from the exact trace and standard errors, over seeds."""
    op = DenseOperator(spectra.with_spectrum(values))
    results = [estimate(op, matvecs, seed) for seed in range(REPEATS)]
    deviation = torch.tensor([r[0] for r in results], dtype=torch.float64) - values.sum()
    return deviation, torch.tensor([r[1] for r in results], dtype=torch.float64)


def by_xtrace(op, matvecs, seed):
    estimate = xtrace(op, matvecs=matvecs, seed=seed)
    return estimate.trace, estimate.stderr


def by_hutchinson(op, matvecs, seed):
    estimate = hutchinson(op, probes=matvecs, seed=seed)
    return estimate.trace, estimate.trace_stderr


@pytest.mark.parametrize(
    "spectrum", [spectra.indefinite, spectra.loss_surface, spectra.negative, spectra.clustered]
)
def test_it_is_unbiased_and_its_standard_error_covers(spectrum):
    deviation, stderr = errors(spectrum(200), matvecs=24, estimate=by_xtrace)
    spread = float(deviation.std())
    assert abs(float(deviation.mean())) < 4 * spread / REPEATS**0.5
    assert 0.7 < spread / float(stderr.square().mean().sqrt()) < 1.7
    assert ((deviation / stderr).abs() < 2.5).double().mean() > 0.8


def test_it_beats_hutchinson_on_a_loss_surface_at_equal_cost():
    values = spectra.loss_surface(300)
    ours, _ = errors(values, matvecs=40, estimate=by_xtrace)
    theirs, _ = errors(values, matvecs=40, estimate=by_hutchinson)
    assert ours.square().mean() < theirs.square().mean() / 25


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_a_low_rank_matrix_is_exact(rank):
    values = torch.zeros(200, dtype=torch.float64)
    values[:rank] = torch.arange(1.0, rank + 1)
    estimate = xtrace(DenseOperator(spectra.with_spectrum(values)), matvecs=20)
    assert estimate.trace == pytest.approx(float(values.sum()), abs=1e-10)
    assert estimate.stderr < 1e-9


def test_float32_does_not_spoil_it():
    values = spectra.loss_surface(500)
    matrix = spectra.with_spectrum(values)
    exact = xtrace(DenseOperator(matrix), matvecs=30)
    estimate = xtrace(DenseOperator(matrix.float()), matvecs=30)
    assert abs(estimate.trace - float(values.sum())) < 5 * exact.stderr


def test_a_small_matrix_is_summed():
    values = spectra.indefinite(12)
    op = Counting(DenseOperator(spectra.with_spectrum(values)))
    estimate = xtrace(op, matvecs=20)
    assert estimate.trace == pytest.approx(float(values.sum()))
    assert estimate.stderr == 0.0
    assert estimate.num_matvecs == op.calls == 12


@pytest.mark.parametrize("matvecs", [4, 21])
def test_every_matvec_is_counted(matvecs):
    op = Counting(DenseOperator(spectra.with_spectrum(spectra.indefinite(50))))
    assert xtrace(op, matvecs=matvecs).num_matvecs == op.calls == matvecs // 2 * 2


def test_too_few_matvecs_are_refused():
    with pytest.raises(ConfigError, match="4 or more"):
        xtrace(DenseOperator(torch.eye(50)), matvecs=3)


@pytest.mark.parametrize("n", [5, 50])
def test_nan_is_refused(n):
    with pytest.raises(NonfiniteError):
        xtrace(DenseOperator(torch.full((n, n), torch.nan)), matvecs=8)
