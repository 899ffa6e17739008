import pytest
import torch

from lipprof.errors import ConfigError, NonfiniteError
from lipprof.linalg import DenseOperator, spectral_density
from tests.linalg import spectra
from tests.linalg.operators import Counting, DiagonalOperator

REPEATS = 16
KINDS = ["rademacher", "gaussian"]
SPECTRA = [spectra.clustered, spectra.indefinite, spectra.loss_surface, spectra.negative]


def smoothed(values, grid, width):
    distance = (grid - values[:, None]) / width
    return (-distance.square() / 2).exp().mean(0) / (width * (2 * torch.pi) ** 0.5)


@pytest.mark.parametrize("spectrum", SPECTRA, ids=lambda f: f.__name__)
def test_the_density_lies_within_its_standard_error(spectrum):
    values = spectrum(200)
    op = DenseOperator(spectra.with_spectrum(values))
    spread = float(values.max() - values.min())
    width = spread / 10
    grid = torch.linspace(float(values.min()), float(values.max()), 15, dtype=torch.float64)
    exact = smoothed(values, grid, width)
    visible = exact > 0.02 / spread  # elsewhere there is next to nothing to estimate
    curves = [
        spectral_density(op, probes=5, steps=25, seed=seed).density(grid, width=width)
        for seed in range(REPEATS)
    ]
    means = torch.stack([curve.mean for curve in curves])[:, visible]
    stderrs = torch.stack([curve.stderr for curve in curves])[:, visible]
    bias = (means.mean(0) - exact[visible]).abs()
    assert (bias < 5 * means.std(0) / REPEATS**0.5 + 1e-6 / spread).all()
    ratio = means.std(0) / stderrs.square().mean(0).sqrt()
    assert 0.6 < ratio.mean() < 1.5


def test_a_density_has_mass_one():
    op = DenseOperator(spectra.with_spectrum(spectra.indefinite(200)))
    density = spectral_density(op, probes=3, steps=30)
    torch.testing.assert_close(density.weights.sum(1), torch.ones(3).double())
    grid = density.grid(2000)
    mass = torch.trapezoid(density.density(grid).mean, grid)
    assert float(mass) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_trace_of_a_function_lies_within_its_standard_error(kind):
    values = spectra.indefinite(300)
    op = DenseOperator(spectra.with_spectrum(values))
    exact = float(torch.log1p(values.square()).sum())
    deviations = []
    for seed in range(REPEATS):
        density = spectral_density(op, probes=6, steps=15, seed=seed, kind=kind)
        trace, stderr = density.trace(lambda x: torch.log1p(x.square()))
        deviations.append((trace - exact) / stderr)
    spread = torch.tensor(deviations)
    assert spread.abs().max() < 6
    assert 0.6 < spread.std() < 1.8


def test_moments_are_exact_for_each_probe():
    """m nodes integrate polynomials of degree 2m − 1: here vᵀ A³ v, by two products."""
    values = spectra.indefinite(100)
    matrix = spectra.with_spectrum(values)
    density = spectral_density(DenseOperator(matrix), probes=1, steps=2, seed=3)
    generator = torch.Generator().manual_seed(3)
    signs = 2.0 * torch.randint(0, 2, (100,), generator=generator, dtype=torch.int8).double() - 1
    trace, _ = density.trace(lambda x: x**3)
    assert trace == pytest.approx(float(signs @ matrix @ matrix @ matrix @ signs), rel=1e-10)


def test_the_cumulative_distribution_counts_eigenvalues():
    values = spectra.indefinite(400)
    density = spectral_density(DenseOperator(spectra.with_spectrum(values)), probes=10, steps=80)
    grid = torch.tensor([-4.0, -1.0, 2.0, 5.0, 8.0], dtype=torch.float64)
    exact = (values[:, None] <= grid).double().mean(0)
    below = density.cumulative(grid).mean
    torch.testing.assert_close(below, exact, rtol=0, atol=0.03)
    assert below[0] == 0.0
    assert float(below[-1]) == pytest.approx(1.0)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_closed_krylov_space_keeps_its_weight(value):
    """Every vector is an eigenvector: one node has all the weight."""
    density = spectral_density(DenseOperator(value * torch.eye(50).double()), probes=3, steps=10)
    assert density.trace(lambda x: x) == pytest.approx((50 * value, 0.0), abs=1e-10)
    torch.testing.assert_close(density.weights[:, 0], torch.ones(3).double())
    assert density.weights[:, 1:].abs().max() == 0.0


def test_a_few_distinct_values_are_found_with_their_shares():
    values = torch.tensor([-1.0] * 20 + [0.0] * 150 + [4.0] * 30, dtype=torch.float64)
    density = spectral_density(DenseOperator(spectra.with_spectrum(values)), probes=40, steps=12)
    shares = density.cumulative(torch.tensor([-0.5, 2.0, 5.0]).double())
    assert (shares.mean - torch.tensor([0.1, 0.85, 1.0])).abs().max() < 0.03


def test_outliers_are_not_counted_twice():
    """Without reorthogonalisation copies of 40 would appear."""
    density = spectral_density(
        DiagonalOperator(spectra.loss_surface(5000).float()), probes=1, steps=120
    )
    near = (density.nodes - 40.0).abs() < 1e-3
    assert near.sum() == 1


def test_every_matvec_is_counted():
    op = Counting(DenseOperator(spectra.with_spectrum(spectra.indefinite(50))))
    assert spectral_density(op, probes=3, steps=7).num_matvecs == op.calls == 21


def test_one_probe_has_no_standard_error():
    density = spectral_density(DenseOperator(torch.eye(20)), probes=1, steps=2)
    assert density.cumulative(torch.tensor([2.0])).stderr.isnan().all()


@pytest.mark.parametrize("arguments", [dict(probes=0), dict(steps=0)])
def test_impossible_requests_are_refused(arguments):
    with pytest.raises(ConfigError):
        spectral_density(DenseOperator(torch.eye(20)), **arguments)


def test_a_width_of_zero_is_refused():
    density = spectral_density(DenseOperator(torch.eye(20)), probes=2, steps=2)
    with pytest.raises(ConfigError, match="width"):
        density.density(torch.tensor([1.0]), width=0.0)


def test_nan_is_refused():
    with pytest.raises(NonfiniteError):
        spectral_density(DenseOperator(torch.full((20, 20), torch.nan)), probes=2, steps=5)
