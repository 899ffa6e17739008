"""One number per tensor against NumPy on its own slice."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipprof.lipschitz import per_tensor


@pytest.mark.parametrize("how", ["mean", "max"])
@given(tensors=st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5), min_size=1))
def test_matches_numpy_tensor_by_tensor(how, tensors):
    flat = torch.tensor(np.concatenate(tensors), dtype=torch.float64)
    result = per_tensor(flat, [len(each) for each in tensors], how)
    expected = [getattr(np, how)(each) for each in tensors]
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_averages_single_precision_in_double():
    flat = torch.tensor([1e8, 1.0, -1e8, 1.0], dtype=torch.float32)
    assert per_tensor(flat, [4], "mean").item() == 0.5


@pytest.mark.parametrize("how", ["mean", "max"])
def test_nan_stays_in_its_tensor(how):
    result = per_tensor(torch.tensor([torch.nan, 1.0, 2.0, 2.0]), [2, 2], how)
    assert result[0].isnan()
    assert result[1] == 2
