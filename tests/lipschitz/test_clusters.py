import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipprof.lipschitz import clusters

CASES = {
    "apart": ([3.0, 2.0, 1.0], [0.1, 0.1, 0.1], [0, 1, 2]),
    "touching bands": ([3.0, 2.0], [0.5, 0.5], [0, 0]),
    "chained": ([3.0, 2.5, 2.0, 0.0], [0.3, 0.3, 0.3, 0.3], [0, 0, 0, 1]),
    "equal to the last bit": ([1.0, 1.0], [0.0, 0.0], [0, 0]),
    "one wide band over others": ([3.0, 2.0, 1.0], [2.5, 0.0, 0.0], [0, 0, 0]),
    "a wide band below": ([3.0, 2.0, 1.0], [0.0, 0.0, 2.5], [0, 0, 0]),
    "in any order": ([1.0, 3.0, 1.01], [0.1, 0.1, 0.1], [0, 1, 0]),
    "a missing pair": ([3.0, math.nan, 3.0], [0.1, math.nan, 0.1], [0, 1, 0]),
    "two missing pairs": ([math.nan, math.nan], [math.nan, math.nan], [0, 1]),
    "an unknown residual": ([3.0, 2.0], [math.nan, 0.1], [0, 1]),
    "none": ([], [], []),
}


@pytest.mark.parametrize("name", CASES)
def test_labels(name):
    values, residuals, expected = CASES[name]
    assert clusters(torch.tensor(values), torch.tensor(residuals)).tolist() == expected


numbers = st.lists(st.tuples(st.floats(-9, 9), st.floats(0, 2)), min_size=1, max_size=8)


@given(numbers)
def test_are_the_connected_components_of_overlap(pairs):
    """Against the transitive closure of |λᵢ − λⱼ| ≤ rᵢ + rⱼ."""
    values, residuals = torch.tensor(pairs, dtype=torch.float64).T
    lower, upper = values - residuals, values + residuals
    reached = (lower[:, None] <= upper) & (lower <= upper[:, None])
    for _ in pairs:
        reached = (reached.double() @ reached.double()) > 0
    labels = clusters(values, residuals)
    assert torch.equal(labels[:, None] == labels, reached)
