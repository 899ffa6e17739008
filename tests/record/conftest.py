"""Headers and measurements for the tests of the run file."""

import numpy as np
import pytest

from lipprof.record import VARIABLES, Measurement, Status
from lipprof.settings import Settings
from tests.headers import run_header

TENSORS = ("conv.weight", "conv.bias", "head.weight")
NUMEL = (40, 4, 12)
BLOCKS = ("conv*", "head")


@pytest.fixture
def make_header():
    """Return a factory of headers; keywords replace fields."""

    def make(**fields):
        common = dict(
            tensor_names=TENSORS,
            tensor_numel=NUMEL,
            top=2,
            bottom=1,
            blocks=BLOCKS,
            model_class="Net",
            probe="64 samples",
            settings=Settings(top=2, bottom=1).to_toml(),
        )
        return run_header(**(common | fields))

    return make


@pytest.fixture
def header(make_header):
    """Return a header of three eigenpairs and three tensors."""
    return make_header()


@pytest.fixture
def make_measurement():
    """Return a factory of measurements in which every number differs; keywords replace fields."""

    def make(iteration, pairs=3, tensors=3, blocks=2, **fields):
        rng = np.random.default_rng(iteration)
        sizes = {"pair": pairs, "tensor": tensors, "block": blocks}
        values = {}
        for variable in VARIABLES:
            shape = tuple(sizes[axis] for axis in variable.axes[1:])
            if variable.dtype == "f8":
                values[variable.name] = rng.standard_normal(shape or None)
            elif variable.dtype == "i1":
                codes = rng.integers(0, 3, shape).astype(np.int8)
                values[variable.name] = codes if shape else int(codes)
            elif variable.dtype == "i8":
                values[variable.name] = int(rng.integers(2**62))
        values |= {"status": Status(int(values["status"])), "reason": f"why {iteration}"}
        return Measurement(**values | {"iteration": iteration} | fields)

    return make


def _assert_same(left, right):
    for variable in VARIABLES:
        a, b = (getattr(m, variable.name) for m in (left, right))
        assert type(a) is type(b), variable.name
        np.testing.assert_array_equal(a, b, err_msg=variable.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, variable.name


@pytest.fixture
def assert_same():
    """Return a function that compares two measurements, field by field, types included."""
    return _assert_same
