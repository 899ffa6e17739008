"""Partitions: every entry in exactly one unit, sizes, names, refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lipprof.curvature import Partition, check_units
from lipprof.errors import ConfigError


def named(sizes):
    return [
        (f"m{i // 2}.p{i}", torch.zeros(size, requires_grad=True)) for i, size in enumerate(sizes)
    ]


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    units=st.one_of(st.sampled_from(["tensor", "module"]), st.integers(1, 120)),
)
def test_every_entry_is_in_exactly_one_unit_in_flat_order(sizes, units):
    partition = Partition.of(named(sizes), units)
    entries = [
        (piece.tensor, entry)
        for unit in partition.pieces
        for piece in unit
        for entry in range(piece.start, piece.stop)
    ]
    assert entries == [(name, entry) for name, t in named(sizes) for entry in range(t.numel())]
    assert len(set(partition.names)) == len(partition.names) == len(partition.numel)
    assert sum(partition.numel) == sum(sizes)
    if isinstance(units, int):
        assert set(partition.numel[:-1]) <= {units}
        assert partition.numel[-1] <= units


def test_names_say_where_a_unit_is():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))  # 6, 3, 3, 1
    parameters = list(model.named_parameters())
    assert Partition.of(parameters, "module").names == ("0", "1")
    assert Partition.of(parameters, 4).names == (
        "0.weight[:4]",
        "0.weight[4:] to 0.bias[:2]",
        "0.bias[2:] to 1.weight",
        "1.bias",
    )
    assert Partition.of(parameters, 2).names[1] == "0.weight[2:4]"
    assert Partition.of(parameters, 10**9).names == ("0.weight to 1.bias",)
    assert Partition.of(nn.Linear(2, 2).named_parameters(), "module").names == ("(root)",)
    parameters[1][1].requires_grad_(False)
    assert Partition.of(parameters, "module").numel == (6, 4)
    assert [Partition.of(parameters, u).kind for u in ("tensor", "module", 3)] == [
        "tensor",
        "module",
        "chunk",
    ]


@pytest.mark.parametrize("units", [0, -1, 2.0, True, None, "layers", "eigenspace"])
def test_other_units_are_refused(units):
    with pytest.raises(ConfigError, match="'tensor', 'module', or the number of entries"):
        check_units(units)
    if units in {0, -1}:
        with pytest.raises(ConfigError, match="'tensor', 'module', or the number of entries"):
            Partition.of(named([3]), units)
