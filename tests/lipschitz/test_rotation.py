"""Rotations whose angles are known by construction, and scipy's principal angles."""

import math

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from lipprof.errors import ShapeError
from lipprof.lipschitz import (
    basis_change,
    match_pairs,
    principal_angles,
    rotation_lipschitz,
)
from tests.lipschitz.test_tracking import orthonormal, rotation_of


def turned(basis, *angles):
    """Row i turned by the i-th angle towards a direction outside the rows."""
    rows = [
        math.cos(angle) * basis[i] + math.sin(angle) * basis[len(angles) + i]
        for i, angle in enumerate(angles)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("k", "j"), [(3, 3), (2, 4), (5, 2)])
def test_angles_are_scipys(seed, k, j):
    vectors, previous = orthonormal(k, seed=seed), orthonormal(j, seed=seed + 100)
    expected = np.sort(subspace_angles(vectors.numpy().T, previous.numpy().T))
    np.testing.assert_allclose(principal_angles(vectors, previous), expected, atol=1e-12)


@pytest.mark.parametrize("angles", [(0.0, 1e-12, 1e-9), (1e-5, 0.1, math.pi / 2)])
def test_angles_small_and_large_in_any_basis(angles):
    basis = orthonormal(6)
    vectors = rotation_of(3, seed=1) @ turned(basis, *angles)
    found = principal_angles(vectors, rotation_of(3, seed=2) @ basis[:3])
    np.testing.assert_allclose(found, angles, rtol=1e-6, atol=1e-14)


def test_small_angles_survive_float32():
    rows = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(rows).Q.T
    vectors, previous = turned(basis, 1e-4, 2e-4, 3e-4).float(), basis[:3].float()
    found = principal_angles(vectors, previous)
    np.testing.assert_allclose(found, [1e-4, 2e-4, 3e-4], rtol=5e-3)
    change = basis_change(vectors, previous, match_pairs(vectors, previous))
    assert change == pytest.approx(2 * math.sin(1.5e-4), rel=5e-3)


def test_no_angles_of_an_empty_end():
    basis = orthonormal(2)
    assert principal_angles(basis[:0], basis).shape == (0,)


def test_change_is_the_norm_of_the_difference_of_aligned_rows():
    basis = orthonormal(6)
    previous, signs = basis[:3], torch.tensor([[1.0], [-1.0], [-1.0]]).double()
    vectors = turned(basis, 0.1, 0.2, 0.3)
    expected = torch.linalg.matrix_norm(vectors - previous, 2).item()
    shown = (signs * vectors)[[2, 0, 1]]
    found = basis_change(shown, previous, match_pairs(shown, previous))
    assert found == pytest.approx(expected, rel=1e-12)
    assert found == pytest.approx(2 * math.sin(0.15), rel=1e-12)


def test_within_a_cluster_the_basis_does_not_count():
    basis = orthonormal(6)
    labels = torch.tensor([0, 0, 1])
    inner = torch.block_diag(rotation_of(2, seed=3), torch.eye(1).double())
    vectors = inner @ turned(basis, 0.1, 0.2, 0.05)
    matching = match_pairs(vectors, basis[:3], clusters=labels, previous_clusters=labels)
    assert basis_change(vectors, basis[:3], matching) == pytest.approx(2 * math.sin(0.1), rel=1e-9)


def test_new_and_regrouped_pairs_are_left_out():
    basis = orthonormal(8)
    vectors = torch.cat([rotation_of(2, seed=3) @ basis[:2], turned(basis[2:], 0.1), basis[7:]])
    matching = match_pairs(
        vectors, basis[:4], clusters=torch.tensor([0, 0, 1, 2]), previous_clusters=None
    )
    assert basis_change(vectors, basis[:4], matching) == pytest.approx(2 * math.sin(0.05))
    unmatched = match_pairs(basis[:2], basis[4:6])
    assert math.isnan(basis_change(basis[:2], basis[4:6], unmatched))


def test_a_vector_with_nan_has_no_angles():
    basis = orthonormal(2)
    vectors = torch.stack([torch.full_like(basis[0], torch.nan), basis[1]])
    assert principal_angles(vectors, basis).isnan().tolist() == [True, True]
    assert math.isnan(basis_change(vectors, basis, match_pairs(vectors, basis)))


def test_rotation_per_distance():
    assert rotation_lipschitz(0.5, 2.0) == 0.25
    for change, distance in [(0.5, 0.0), (0.5, math.nan), (math.nan, 1.0)]:
        assert math.isnan(rotation_lipschitz(change, distance))


def test_bases_of_different_length_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse them first
    with pytest.raises(ShapeError, match=r"12 entries .* 10"):
        principal_angles(orthonormal(2), orthonormal(2, n=10))
