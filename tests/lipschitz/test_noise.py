"""Batch noise by simulation: populations, batches and probes whose drift and noise are known."""

import math

import pytest
import torch

from lipprof.lipschitz import noise_floor, noise_share, probe_variance

TRIALS = 4000  # columns: each is an experiment of its own
SIGMA, OWN, DRIFT = 2.0, 0.7, 3.0


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def batches(count, *, seed, size_ratio=1.0):
    """Quotients at two measurements: what a batch keeps (SIGMA) and what it does not (OWN)."""
    kept, first, second = normal(3, count, TRIALS, seed=seed) / math.sqrt(size_ratio)
    return 5 + SIGMA * kept + OWN * first, 5 + DRIFT + SIGMA * kept + OWN * second


def test_the_floor_and_its_error_are_those_of_the_simulation():
    floor = noise_floor(SIGMA * normal(20, TRIALS) + 5)
    assert floor.square().mean().item() == pytest.approx(SIGMA**2, rel=0.02)
    assert floor.std().item() == pytest.approx(0.16 * SIGMA, rel=0.05)


@pytest.mark.parametrize("size_ratio", [1.0, 4.0])
def test_on_a_probe_only_what_a_batch_does_not_keep_is_noise(size_ratio):
    previous, now = batches(8, seed=1)
    variance = probe_variance(now, previous, size_ratio=size_ratio)
    first, second = batches(1, seed=2, size_ratio=size_ratio)
    error = ((second - first)[0] - DRIFT).square().mean().item()
    assert variance.mean().item() == pytest.approx(error, rel=0.06)
    assert variance.mean().item() == pytest.approx(2 * OWN**2 / size_ratio, rel=0.06)


@pytest.mark.parametrize("drift", [0.0, 1.0, 10.0])
def test_without_the_noise_the_mean_square_is_that_of_the_population(drift):
    previous, now = batches(6, seed=4)
    (first,), (second,) = batches(1, seed=5)
    measured = second - first - DRIFT + drift
    left = measured.square() - probe_variance(now, previous)
    assert left.mean().item() == pytest.approx(drift**2, abs=0.2 + 0.02 * drift**2)


def test_share():
    change = torch.tensor([2.0, -2.0, 1.0, 0.0, 0.0, math.nan, 1.0])
    variance = torch.tensor([1.0, 4.0, 9.0, 1.0, 0.0, 1.0, math.nan])
    expected = torch.tensor([0.25, 1.0, 1.0, 1.0, math.nan, math.nan, math.nan])
    torch.testing.assert_close(noise_share(change, variance), expected.double(), equal_nan=True)


def test_one_batch_says_nothing_of_the_scatter():
    single = normal(1, 3)
    assert noise_floor(single).isnan().all()
    assert probe_variance(single, single).isnan().all()


def test_an_unknown_quotient_leaves_the_other_pairs_alone():
    quotients = normal(4, 3)
    quotients[1, 0] = math.nan
    assert noise_floor(quotients).isnan().tolist() == [True, False, False]
    assert probe_variance(quotients, normal(4, 3)).isnan().tolist() == [True, False, False]


def test_float32_quotients_are_summed_in_float64():
    quotients = (1e4 + normal(6, 3, seed=7)).float()
    expected = quotients.double().std(0)
    torch.testing.assert_close(noise_floor(quotients), expected, rtol=1e-12, atol=0)
