"""Which eigenpair of this measurement is which of the last: matching by overlap |vᵢ(t)·vⱼ(t−1)|.

Rank says nothing once two eigenvalues cross, so pairs are matched by a maximum-overlap
assignment.  A pair whose partner overlaps it by less than ``MIN_OVERLAP`` has no predecessor: its
eigenspace is new among those computed.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lipprof.errors import ShapeError

MIN_OVERLAP = 0.3
"""A tenth of the vector's mass.  Unrelated vectors overlap by about n^-½; eigenvectors of a small
GPT 50 iterations apart kept 0.2 to 0.7."""


@dataclass(frozen=True, slots=True)
class Matching:
    """For each of k pairs: the index of its predecessor (−1: none) and the overlap with it."""

    source: Int[Tensor, " k"]
    overlap: Float[Tensor, " k"]

    @property
    def found(self) -> Tensor:
        """Whether a pair has a predecessor, (k,) bool."""
        return self.source >= 0


def match_pairs(
    vectors: Float[Tensor, "k n"],
    previous: Float[Tensor, "j n"],
    *,
    min_overlap: float = MIN_OVERLAP,
) -> Matching:
    """Match eigenvectors with those of the last measurement.

    Args:
        vectors: orthonormal rows.
        previous: orthonormal rows; their number may differ.
        min_overlap: below it a pair counts as new.

    Returns:
        The matching, on the CPU.

    Raises:
        ShapeError: the vectors have different lengths.
    """
    if vectors.shape[1] != previous.shape[1]:
        raise ShapeError(
            f"The eigenvectors have {vectors.shape[1]} entries and the previous ones "
            f"{previous.shape[1]}: they belong to different sets of parameters."
        )
    overlap = (vectors @ previous.T).abs().double().cpu().numpy()
    row, column = linear_sum_assignment(np.nan_to_num(overlap), maximize=True)
    best = np.zeros(len(vectors))
    best[row] = overlap[row, column]
    source = np.full(len(vectors), -1)
    source[row] = np.where(overlap[row, column] >= min_overlap, column, -1)
    return Matching(torch.from_numpy(source), torch.from_numpy(best))
