"""Shared by all tests: shape checks by beartype, one thread's worth of determinism."""

import pytest
import torch
from jaxtyping import install_import_hook

_LAYERS = ("lipprof.linalg", "lipprof.curvature", "lipprof.lipschitz")
install_import_hook(_LAYERS, "beartype.beartype")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
