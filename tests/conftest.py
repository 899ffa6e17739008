"""Shared by all tests: shapes checked by beartype, seeded, one thread (steady on busy machines)."""

import pytest
import torch
from jaxtyping import install_import_hook

_LAYERS = ("lipprof.linalg", "lipprof.curvature", "lipprof.lipschitz")
install_import_hook(_LAYERS, "beartype.beartype")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
