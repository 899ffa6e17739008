"""What convolutions take within themselves, beside what torch's profiler saw them allocate."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lipprof.curvature.hessian.workspace import workspace_bytes
from tests.linalg.allocations import peak_memory

BATCH = 16
pytestmark = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith(("AVX2", "AVX512")),
    reason="measured on these",
)


class Foreseen(TorchDispatchMode):
    """The peak over the only operator that is called."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (tuple, list)) else [result]
        held = sum(t.nbytes for t in outputs if t is not None)
        self.bytes = held + workspace_bytes(func, args, result)
        return result


def foreseen_and_measured(call):
    with Foreseen() as foreseen:
        call()
    with peak_memory() as peak:
        call()
    return foreseen.bytes, peak.bytes


@pytest.mark.parametrize(
    ("channels", "size", "out", "kernel"),
    [(1, 28, 16, 5), (6, 14, 16, 5), (3, 32, 64, 3), (20, 16, 50, 5), (64, 16, 128, 1),
     (512, 4, 512, 3), (17, 16, 33, 3), (100, 16, 40, 3)],
)  # fmt: skip
@pytest.mark.parametrize("mask", [None, (True, True), (False, True), (True, False)])
def test_workspace_is_what_is_allocated(channels, size, out, kernel, mask):
    if channels == 1 and mask == (False, True):
        pytest.skip("read as it is with AVX-512, in blocks with AVX2")
    x = torch.randn(BATCH, channels, size, size)
    w = torch.randn(out, channels, kernel, kernel)
    rest = ([1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], 1)
    aten = torch.ops.aten
    y = aten.convolution(x, w, None, *rest)

    def call():
        if mask is None:
            return aten.convolution(x, w, None, *rest)
        return aten.convolution_backward(y, x, w, None, *rest, [*mask, False])

    foreseen, measured = foreseen_and_measured(call)
    assert foreseen == pytest.approx(measured, rel=0.15)
    assert measured > x.nbytes, "of any of them the most is copies"


def test_a_transposed_convolution_pads_both_sides():
    x, w = torch.randn(BATCH, 6, 28, 28), torch.randn(6, 1, 5, 5)
    rest = ([1, 1], [2, 2], [1, 1], True, [0, 0], 1)
    foreseen, measured = foreseen_and_measured(
        lambda: torch.ops.aten.convolution(x, w, None, *rest)
    )
    assert foreseen == pytest.approx(measured, rel=0.15)


def test_other_operators_have_none():
    x = torch.randn(4, 4)
    assert workspace_bytes(torch.ops.aten.mm.default, (x, x), x @ x) == 0
