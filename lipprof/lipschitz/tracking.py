"""Which eigenpair of this measurement is which of the last: matching by overlap |vᵢ(t)·vⱼ(t−1)|.

Rank says nothing once two eigenvalues cross, so pairs are matched by a maximum-overlap
assignment.  A pair whose partner overlaps it by less than ``MIN_OVERLAP`` has no predecessor: its
eigenspace is new among those computed.

The vectors of a cluster are an arbitrary basis of its eigenspace, and so are their single overlaps.
Everything here depends on spaces only.  Between a cluster C and a previous one C′ the singular
values σ of V_C V_C′ᵀ, the cosines of the principal angles, take the place of |v·v′|, which they are
for single pairs: all members are assigned by the root mean square of σ, the i-th member that is
assigned from C to C′ has the overlap σᵢ, and those with too small a σᵢ are new.  The members that
go from C to C′ are a group.  Which member is which inside a group is unknowable, so it is kept by
rank, and the change of eigenvalue is one number for the group, that of the mean.

Where a group is not all of C and all of C′, the clusters have split, merged, gained or lost a
member (``REGROUPED``).  Its mean is that of arbitrary members then, and known up to the width of
their clusters only.

Cost: k·j·n for the overlaps, one assignment of k to j.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lipprof.errors import ShapeError

MIN_OVERLAP = 0.3
"""A tenth of the vector's mass.  Unrelated vectors overlap by about n^-½; eigenvectors of a small
GPT 50 iterations apart kept 0.2 to 0.7."""

COLUMNS = 1 << 16
"""Columns taken at once: sums run in the vectors' dtype inside a block and in float64 across them,
and no temporary is as long as a vector."""

TIE = 1e-9
"""Overlaps nearer to each other than this are ties, as all inside a cluster are; rank decides."""

_Indices = NDArray[np.int64]


class Event(enum.IntEnum):
    """What happened to an eigenpair since the last measurement."""

    NEW = 0  # no predecessor
    CONTINUED = 1  # in the same order among the matched pairs
    CROSSED = 2  # its order to another matched pair has changed
    REGROUPED = 3  # its cluster has split, merged, gained or lost a member


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """What became of each of k pairs; on the CPU."""

    source: Int[Tensor, " k"]  # index of the predecessor; −1: none
    overlap: Float[Tensor, " k"]  # with the partner, also where it is too small
    event: Int[Tensor, " k"]  # codes of Event
    group: Int[Tensor, " k"]  # label of the group; −1: no predecessor
    lost: Int[Tensor, " l"]  # previous pairs without a successor

    @property
    def found(self) -> Bool[Tensor, " k"]:
        """Whether a pair has a predecessor."""
        return self.source >= 0

    def change(
        self, values: Float[Tensor, " k"], previous: Float[Tensor, " j"]
    ) -> Float[Tensor, " k"]:
        """Change of each eigenvalue, in a group that of the mean, for all its members.

        Args:
            values: λᵢ; NaN makes the change unknown for its whole group.
            previous: λⱼ at the last measurement.

        Returns:
            λᵢ(t) − λⱼ(t−1); NaN for a pair without a predecessor.  For a ``REGROUPED`` one it is
            known only up to the width of the clusters.  Unit of the eigenvalues.
        """
        single = values - previous[self.source.clamp(min=0)]
        change = torch.full_like(single, torch.nan)
        for group in self.group[self.found].unique():
            members = self.group == group
            change[members] = single[members].mean()
        return change


def overlaps(vectors: Float[Tensor, "k n"], previous: Float[Tensor, "j n"]) -> Float[Tensor, "k j"]:
    """Inner products vᵢ(t)·vⱼ(t−1) of two bases.

    Returns:
        V V′ᵀ in float64, on the device of the vectors.

    Raises:
        ShapeError: the vectors have different lengths.
    """
    if vectors.shape[1] != previous.shape[1]:
        raise ShapeError(
            f"The eigenvectors have {vectors.shape[1]} entries and the previous ones "
            f"{previous.shape[1]}: they belong to different sets of parameters."
        )
    total = torch.zeros(len(vectors), len(previous)).to(vectors.device, torch.float64)
    for now, before in blocks(vectors, previous):
        total += (now @ before.T).double()
    return total


def blocks(vectors: Tensor, previous: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Columns of both bases together, ``COLUMNS`` at once.

    Yields:
        Two blocks with the same columns.
    """
    yield from zip(vectors.split(COLUMNS, 1), previous.split(COLUMNS, 1), strict=True)


def match_pairs(
    vectors: Float[Tensor, "k n"],
    previous: Float[Tensor, "j n"],
    *,
    clusters: Int[Tensor, " k"] | None = None,
    previous_clusters: Int[Tensor, " j"] | None = None,
    min_overlap: float = MIN_OVERLAP,
) -> Matching:
    """Match eigenvectors with those of the last measurement.

    Args:
        vectors: orthonormal rows, by falling eigenvalue.
        previous: the same at the last measurement; their number may differ.
        clusters: labels from ``lipprof.lipschitz.clusters``; None: every pair by itself.
        previous_clusters: those of the last measurement.
        min_overlap: below it a pair counts as new.

    Returns:
        The matching.

    Raises:
        ShapeError: the vectors have different lengths.
    """
    products = np.nan_to_num(overlaps(vectors, previous).cpu().numpy())
    now, before = _labels(clusters, len(vectors)), _labels(previous_clusters, len(previous))
    row, column = linear_sum_assignment(_shares(products, now, before), maximize=True)
    source, group = np.full((2, len(vectors)), -1)
    best, whole = np.zeros(len(vectors)), np.zeros(len(vectors), bool)
    for label, (a, b) in enumerate(np.unique([now[row], before[column]], axis=1).T):
        space, previous_space = now == a, before == b
        assigned = space[row] & previous_space[column]
        rows, columns = row[assigned], column[assigned]
        cosines = np.linalg.svd(products[np.ix_(space, previous_space)], compute_uv=False)
        best[rows] = cosines[: len(rows)]
        kept = rows[best[rows] >= min_overlap]
        source[kept], group[kept] = columns[: len(kept)], label
        whole[kept] = len(kept) == space.sum() == previous_space.sum()
    event = np.select(
        [source < 0, ~whole, _crossed(source)],
        [Event.NEW, Event.REGROUPED, Event.CROSSED],
        Event.CONTINUED,
    )
    return Matching(
        source=torch.from_numpy(source),
        overlap=torch.from_numpy(best),
        event=torch.from_numpy(event),
        group=torch.from_numpy(group),
        lost=torch.from_numpy(np.setdiff1d(np.arange(len(previous)), source)),
    )


def _labels(clusters: Tensor | None, count: int) -> _Indices:
    return np.arange(count) if clusters is None else clusters.cpu().numpy()


def _shares(products: NDArray[np.float64], now: _Indices, before: _Indices) -> NDArray[np.float64]:
    """Root mean square of the clusters' cosines, (k, j): ‖V_C V_C′ᵀ‖_F / √min(|C|, |C′|)."""
    same, previous_same = np.equal.outer(now, now), np.equal.outer(before, before)
    power = same @ products**2 @ previous_same
    shares = np.sqrt(power / np.minimum.outer(same.sum(1), previous_same.sum(1)))
    rows, columns = products.shape
    # a sum of products is largest where both factors fall together
    by_rank = np.multiply.outer(np.arange(rows, 0, -1), np.arange(columns, 0, -1))
    return shares + TIE * by_rank / max(products.size, 1)


def _crossed(source: _Indices) -> NDArray[np.bool_]:
    """Whether a pair's order to another matched pair has changed; never so inside a cluster."""
    found = np.flatnonzero(source >= 0)
    to = source[found]
    swapped = np.subtract.outer(found, found) * np.subtract.outer(to, to) < 0
    crossed = np.zeros(len(source), bool)
    crossed[found] = swapped.any(axis=1)
    return crossed
