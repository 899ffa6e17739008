"""L per tensor against the drift of the exact diagonal, which the estimator never sees."""

import math

import pytest
import torch

from lipprof.linalg import DenseOperator, hutchinson
from lipprof.lipschitz import TensorDrift

NUMEL = [40, 60, 20]
N = sum(NUMEL)


def symmetric(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(N, N, generator=generator, dtype=torch.float64) * scale
    return (noise + noise.T) / 2


def series(count, *, off_diagonal, drift):
    """Symmetric matrices whose diagonal moves by ``drift`` per step, the rest at random."""
    for t in range(count):
        matrix = symmetric(t, off_diagonal)
        matrix.diagonal().copy_(3.0 + t * drift)
        yield matrix


def follow(matrices, aggregate, *, probes, distance=0.5, **options):
    follower = TensorDrift(NUMEL, aggregate=aggregate, **options)
    for seed, matrix in enumerate(matrices):
        estimate = hutchinson(DenseOperator(matrix), probes=probes, seed=seed, parts=NUMEL)
        known = follower.update(estimate, distance)
    return known


@pytest.mark.parametrize("aggregate", ["trace", "mean", "max"])
def test_a_diagonal_matrix_has_no_noise(aggregate):
    known = follow(series(4, off_diagonal=0.0, drift=torch.full((N,), 0.2)), aggregate, probes=4)
    torch.testing.assert_close(known.lipschitz, torch.full((3,), 0.4, dtype=torch.float64))
    torch.testing.assert_close(known.lipschitz_upper, known.lipschitz)
    torch.testing.assert_close(known.curvature, torch.full((3,), 3.6, dtype=torch.float64))


def test_the_three_ways_differ_as_their_definitions_do():
    drift = torch.linspace(-0.3, 0.5, N, dtype=torch.float64)
    parts = drift.split(NUMEL)
    expected = {
        "trace": [abs(part.mean()) for part in parts],
        "mean": [part.abs().mean() for part in parts],
        "max": [part.abs().max() for part in parts],
    }
    for aggregate, values in expected.items():
        known = follow(series(3, off_diagonal=0.0, drift=drift), aggregate, probes=2)
        torch.testing.assert_close(known.lipschitz, torch.stack(values) / 0.5)


@pytest.mark.parametrize(("aggregate", "noise"), [("trace", 0.3), ("mean", 0.08)])
def test_noise_is_removed_where_alg_2_as_it_stands_is_far_too_high(aggregate, noise):
    drift = torch.full((N,), 0.2, dtype=torch.float64)
    matrices = series(200, off_diagonal=noise, drift=drift)
    known = follow(matrices, aggregate, probes=6, alpha=0.99)
    assert (known.lipschitz_upper > 1.2 * 0.4).all()
    assert (known.lipschitz < 1.05 * 0.4).all()
    assert (known.lipschitz > 0.65 * 0.4).all()


@pytest.mark.parametrize("aggregate", ["trace", "mean"])
def test_pure_noise_leaves_next_to_nothing(aggregate):
    matrices = series(200, off_diagonal=1.0, drift=torch.zeros(N, dtype=torch.float64))
    known = follow(matrices, aggregate, probes=6, alpha=0.99)
    assert (known.lipschitz < 0.4 * known.lipschitz_upper).all()


@pytest.mark.parametrize("aggregate", ["mean", "trace"])
def test_standard_error_of_the_curvature_covers_the_truth(aggregate):
    matrix = symmetric(0, 1.0)
    deviations = []
    for seed in range(60):
        estimate = hutchinson(DenseOperator(matrix), probes=12, seed=seed, parts=NUMEL)
        known = TensorDrift(NUMEL, aggregate=aggregate).update(estimate, math.nan)
        truth = torch.stack([part.mean() for part in matrix.diagonal().split(NUMEL)])
        deviations.append((known.curvature - truth) / known.curvature_stderr)
    assert 0.7 < torch.stack(deviations).std() < 1.4


@pytest.mark.parametrize("aggregate", ["trace", "mean", "max"])
def test_noise_of_a_single_probe_is_not_known(aggregate):
    matrices = series(3, off_diagonal=1.0, drift=torch.full((N,), 0.2, dtype=torch.float64))
    known = follow(matrices, aggregate, probes=1)
    assert known.lipschitz.isnan().all()
    assert known.lipschitz_upper.isfinite().all()


def test_alg_2_as_it_stands_is_there_for_who_wants_it():
    matrices = list(series(3, off_diagonal=1.0, drift=torch.zeros(N, dtype=torch.float64)))
    known = follow(matrices, "mean", probes=1, denoise=False, alpha=0.0)
    diagonals = [hutchinson(DenseOperator(matrices[t]), probes=1, seed=t).diagonal for t in (1, 2)]
    change = (diagonals[1] - diagonals[0]).abs()
    expected = torch.stack([part.mean() for part in change.split(NUMEL)]) / 0.5
    torch.testing.assert_close(known.lipschitz, expected)
    assert known.curvature_stderr.isnan().all()


def test_a_standstill_is_seen():
    follower = TensorDrift(NUMEL, aggregate="trace")
    matrices = series(4, off_diagonal=0.0, drift=torch.ones(N))
    ratios = []
    for matrix, distance in zip(matrices, (math.nan, 1.0, 1.0, 0.0), strict=True):
        follower.update(hutchinson(DenseOperator(matrix), probes=2, parts=NUMEL), distance)
        ratios.append(follower.last_distance_ratio)
    assert ratios[1:] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("distance", [0.0, math.nan])
def test_no_movement_says_nothing(distance):
    known = follow(
        series(3, off_diagonal=0.1, drift=torch.ones(N)), "trace", probes=2, distance=distance
    )
    assert known.lipschitz.isnan().all()
