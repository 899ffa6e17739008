"""Decimation: extremes, ends and gaps survive, whatever the series."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipprof.report.figures.decimate import keep_extremes

VALUES = st.lists(
    st.floats(allow_nan=True, allow_infinity=False, width=32), min_size=0, max_size=400
).map(lambda values: np.array(values, np.float64))


@given(VALUES, st.integers(4, 100))
def test_extremes_and_ends_survive_within_the_limit(values, limit):
    keep = keep_extremes(values, limit)
    assert keep.size <= max(limit, 0)
    assert (np.diff(keep) > 0).all()
    assert keep.size == values.size or values.size > limit
    if values.size:
        assert keep[0] == 0
        assert keep[-1] == values.size - 1
    if np.isfinite(values).any():
        assert np.nanmax(values[keep]) == np.nanmax(values)
        assert np.nanmin(values[keep]) == np.nanmin(values)


@given(VALUES, st.integers(4, 100))
def test_every_bucket_keeps_its_own_extremes(values, limit):
    """By a loop over the buckets."""
    if values.size <= limit:
        return
    keep = set(keep_extremes(values, limit).tolist())
    edges = np.linspace(0, values.size, limit // 4 + 1).astype(int)
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        bucket, mine = values[start:stop], values[sorted(keep & set(range(start, stop)))]
        assert {start, stop - 1} <= keep
        if np.isfinite(bucket).any():
            assert np.nanmax(mine) == np.nanmax(bucket)
            assert np.nanmin(mine) == np.nanmin(bucket)


@pytest.mark.parametrize("spike", [17, 4321, 9998])
def test_a_spike_and_a_long_gap_survive(spike):
    values = np.sin(np.arange(10_000) / 500)
    values[5000:5200] = np.nan
    values[spike] = 1e6
    keep = keep_extremes(values, 400)
    assert spike in keep
    assert np.isnan(values[keep]).any()
