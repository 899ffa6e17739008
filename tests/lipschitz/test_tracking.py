"""Matching of eigenvectors whose correspondence is known by construction."""

import math

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipprof.errors import ShapeError
from lipprof.lipschitz import Event, clusters, match_pairs


def orthonormal(k, n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(square).Q[:k]


def rotation_of(k, seed):
    return orthonormal(k, n=k, seed=seed)


def events(matching):
    return [Event(code).name for code in matching.event.tolist()]


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


def numbers(*entries):
    return torch.tensor(entries, dtype=torch.float64)


def test_what_happened_to_single_pairs():
    basis = orthonormal(6)
    matching = match_pairs(basis[[0, 2, 1, 5]], basis[:5])
    assert events(matching) == ["CONTINUED", "CROSSED", "CROSSED", "NEW"]
    assert matching.lost.tolist() == [3, 4]


def test_a_new_pair_above_does_not_make_the_others_cross():
    basis = orthonormal(4)
    matching = match_pairs(basis[[3, 0, 1]], basis[:3])
    assert events(matching) == ["NEW", "CONTINUED", "CONTINUED"]
    assert matching.lost.tolist() == [2]


@given(
    permutation=st.permutations(range(5)),
    shown=st.lists(st.integers(0, 4), unique=True, min_size=1),
)
def test_crossed_are_those_whose_order_changed(permutation, shown):
    basis = orthonormal(5)
    now = [permutation[i] for i in shown]
    matching = match_pairs(basis[now], basis)
    for i, code in enumerate(matching.event.tolist()):
        swapped = any((i - k) * (now[i] - now[k]) < 0 for k in range(len(now)))
        assert code == (Event.CROSSED if swapped else Event.CONTINUED)
    assert matching.lost.tolist() == sorted(set(range(5)) - set(now))


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 99),
)
def test_clusters_are_matched_whatever_their_bases(sizes, order, seed):
    """Spaces permuted, each with another basis: every change is that of its space's mean."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    previous = orthonormal(len(labels), n=20)
    values = 10 - labels.double()
    moved = list(range(len(sizes)))
    order.shuffle(moved)
    spaces = [rotation_of(sizes[a], seed + a) @ previous[labels == a] for a in moved]
    now = torch.tensor([a for a in moved for _ in range(sizes[a])]).double()
    new_labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor([sizes[a] for a in moved]))
    new_values = 10 + 3.0 * now
    matching = match_pairs(
        torch.cat(spaces), previous, clusters=new_labels, previous_clusters=labels
    )
    assert torch.equal(labels[matching.source].double(), now)
    assert matching.source.unique().numel() == len(labels)
    torch.testing.assert_close(matching.overlap, torch.ones(len(labels)).double())
    torch.testing.assert_close(matching.change(new_values, values), 4.0 * now)
    rank = torch.arange(len(now))
    swapped = ((rank[:, None] - rank) * (now[:, None] - now) < 0).any(1)
    expected = torch.where(swapped, Event.CROSSED, Event.CONTINUED)
    assert torch.equal(matching.event, expected)


def test_ten_equal_eigenvalues_in_another_basis_are_one_space():
    """Single overlaps are about 10^-½ and say nothing."""
    previous = orthonormal(10, n=40)
    vectors = rotation_of(10, seed=5) @ previous
    labels = torch.zeros(10, dtype=torch.int64)
    assert match_pairs(vectors, previous).overlap.max() < 0.9
    matching = match_pairs(vectors, previous, clusters=labels, previous_clusters=labels)
    assert matching.source.tolist() == list(range(10))
    assert events(matching) == ["CONTINUED"] * 10
    torch.testing.assert_close(matching.overlap, torch.ones(10).double())


def test_the_change_of_a_cluster_is_that_of_its_mean():
    previous = orthonormal(3)
    vectors = torch.block_diag(rotation_of(2, seed=1), torch.eye(1).double()) @ previous
    labels = torch.tensor([0, 0, 1])
    matching = match_pairs(vectors, previous, clusters=labels, previous_clusters=labels)
    change = matching.change(numbers(6.2, 5.8, 2.0), numbers(5.1, 4.9, 1.0))
    torch.testing.assert_close(change, numbers(1.0, 1.0, 1.0))
    unknown = matching.change(numbers(6.2, math.nan, 2.0), numbers(5.1, 4.9, 1.0))
    assert unknown.isnan().tolist() == [True, True, False]


def test_a_cluster_that_splits():
    basis = orthonormal(2)
    previous = rotation_of(2, seed=7) @ basis
    matching = match_pairs(basis, previous, previous_clusters=torch.tensor([0, 0]))
    assert matching.source.tolist() == [0, 1]
    assert events(matching) == ["REGROUPED", "REGROUPED"]
    torch.testing.assert_close(matching.overlap, numbers(1.0, 1.0))
    torch.testing.assert_close(matching.change(numbers(7, 3), numbers(5, 5)), numbers(2, -2))


def test_pairs_that_merge():
    basis = orthonormal(2)
    vectors = rotation_of(2, seed=7) @ basis
    matching = match_pairs(vectors, basis, clusters=torch.tensor([0, 0]))
    assert matching.source.tolist() == [0, 1]
    assert events(matching) == ["REGROUPED", "REGROUPED"]
    torch.testing.assert_close(matching.change(numbers(5, 5), numbers(7, 3)), numbers(-2, 2))


def test_a_cluster_that_exchanges_one_member():
    """One direction of two stays: one member goes on, one is new and one is lost."""
    basis = orthonormal(3)
    labels = torch.tensor([0, 0])
    vectors = rotation_of(2, seed=1) @ basis[:2]
    previous = rotation_of(2, seed=2) @ basis[1:]
    matching = match_pairs(vectors, previous, clusters=labels, previous_clusters=labels)
    assert matching.source.tolist() == [0, -1]
    assert events(matching) == ["REGROUPED", "NEW"]
    torch.testing.assert_close(matching.overlap, numbers(1, 0))
    assert matching.lost.tolist() == [1]
    assert matching.change(numbers(5, 5), numbers(4, 4))[1].isnan()


def test_inside_a_cluster_nothing_crosses():
    basis = orthonormal(3)
    labels = torch.tensor([0, 1, 1])
    matching = match_pairs(basis[[0, 2, 1]], basis, clusters=labels, previous_clusters=labels)
    assert events(matching) == ["CONTINUED"] * 3


@pytest.mark.parametrize("seed", range(3))
def test_an_operator_through_a_crossing(seed):
    """Dense eigenvectors: 3 ± t cross at t = 0, where only their mean is known."""
    basis = orthonormal(4, n=4, seed=seed)
    series = []
    for t in (-0.5, 0.0, 0.5):
        matrix = basis.T @ torch.diag(numbers(9 + t, 3 + t, 3 - t, 1)) @ basis
        values, rows = torch.linalg.eigh(matrix)
        values, rows = values.flip(0), rows.T.flip(0)
        series.append((values, rows, clusters(values, torch.full((4,), 1e-9).double())))
    (early, first, single), (middle, second, joined), (late, third, _) = series
    merged = match_pairs(second, first, clusters=joined, previous_clusters=single)
    assert events(merged) == ["CONTINUED", "REGROUPED", "REGROUPED", "CONTINUED"]
    torch.testing.assert_close(merged.change(middle, early)[[0, 3]], numbers(0.5, 0.0))
    through = match_pairs(third, first)
    assert events(through) == ["CONTINUED", "CROSSED", "CROSSED", "CONTINUED"]
    torch.testing.assert_close(through.change(late, early), numbers(1, 1, -1, 0))
