"""Shared by all tests: shapes checked by beartype, seeded, one thread (steady on busy machines)."""

import signal

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

_LAYERS = ("lipprof.linalg", "lipprof.curvature", "lipprof.lipschitz")
install_import_hook(_LAYERS, "beartype.beartype")

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
hypothesis.settings.register_profile("steady", deadline=None)
hypothesis.settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
