"""Matching of eigenvectors whose correspondence is known by construction."""

import math

import jaxtyping
import pytest
import torch

from lipprof.errors import ShapeError
from lipprof.lipschitz import match_pairs


def orthonormal(k, n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(square).Q[:k]


@pytest.mark.parametrize("seed", range(5))
def test_a_permutation_with_flipped_signs_is_found(seed):
    generator = torch.Generator().manual_seed(seed)
    previous = orthonormal(6, seed=seed)
    order = torch.randperm(6, generator=generator)
    signs = torch.randint(0, 2, (6, 1), generator=generator) * 2 - 1
    matching = match_pairs(signs * previous[order], previous)
    assert torch.equal(matching.source, order)
    torch.testing.assert_close(matching.overlap, torch.ones(6).double())
    assert matching.found.all()


@pytest.mark.parametrize(("degrees", "source"), [(30, [0, 1, 2]), (60, [1, 0, 2])])
def test_a_pair_rotated_in_its_plane(degrees, source):
    previous = orthonormal(3)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rotation = torch.tensor([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
    matching = match_pairs(rotation @ previous, previous)
    assert matching.source.tolist() == source
    overlap = max(cos, sin)
    torch.testing.assert_close(matching.overlap, torch.tensor([overlap, overlap, 1]).double())


def test_new_directions_have_no_predecessor():
    basis = orthonormal(5)
    matching = match_pairs(basis[[4, 1, 3]], basis[:3])
    assert matching.source.tolist() == [-1, 1, -1]
    assert matching.found.tolist() == [False, True, False]
    torch.testing.assert_close(matching.overlap, torch.tensor([0, 1, 0]).double())


@pytest.mark.parametrize(
    ("now", "before", "source"),
    [([3, 0], [0, 1, 2, 3], [3, 0]), ([0, 1, 2, 3], [2, 0], [1, -1, 0, -1]), ([0], [], [-1])],
    ids=["fewer", "more", "none before"],
)
def test_the_number_of_pairs_may_change(now, before, source):
    basis = orthonormal(4)
    assert match_pairs(basis[now], basis[before]).source.tolist() == source


def test_the_total_overlap_decides_not_the_largest():
    overlaps = torch.tensor([[0.8, 0.75], [0.7, 0.1]], dtype=torch.float64)
    matching = match_pairs(overlaps, torch.eye(2, dtype=torch.float64))
    assert matching.source.tolist() == [1, 0]


@pytest.mark.parametrize(("min_overlap", "source"), [(0.5, 0), (0.51, -1)])
def test_overlap_below_the_limit_counts_as_new(min_overlap, source):
    vectors = torch.tensor([[0.5, math.sqrt(0.75)]], dtype=torch.float64)
    previous = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    matching = match_pairs(vectors, previous, min_overlap=min_overlap)
    assert matching.source.tolist() == [source]
    assert matching.overlap.tolist() == [0.5]


def test_a_vector_with_nan_is_new_and_leaves_the_others_alone():
    basis = orthonormal(2)
    vectors = torch.stack([torch.full_like(basis[0], torch.nan), basis[0]])
    assert match_pairs(vectors, basis).source.tolist() == [-1, 0]


def test_vectors_of_different_length_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse them first
    with pytest.raises(ShapeError, match=r"12 entries .* 10"):
        match_pairs(orthonormal(2), orthonormal(2, n=10))
