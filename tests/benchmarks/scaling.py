"""Cost of a Lanczos step against n, over an operator that costs nearly nothing."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lipprof.errors import LipprofError
from lipprof.linalg import eigenpairs
from lipprof.linalg.memory import basis_bytes, working_bytes
from tests.benchmarks.memory import peak_bytes
from tests.benchmarks.sections import Column, Row, Section, Setting, megabytes, number, seconds
from tests.benchmarks.timing import Summary, seconds_of

SUBJECTS = ("1e5", "1e6", "1e7", "1e8")
TOP, BOTTOM, ROWS, STEPS = 1, 1, 16, 28  # one restart in between
RESERVE = 0.8  # of the memory that is free: others live here too


class Diagonal:
    """Eigenvalues from -1 to 1, evenly."""

    def __init__(self, n: int, device: str) -> None:
        self.n, self.dtype, self.device = n, torch.float32, torch.device(device)
        self.entries = torch.linspace(-1, 1, n, device=device)

    def matvec(self, vector: Tensor) -> Tensor:
        return vector * self.entries


def measure(setting: Setting, subject: str) -> list[Row]:
    n = int(float(subject))
    if setting.quick and n > 1_000_000:
        return [_skipped(subject, "skipped: --quick")]
    pairs = TOP + BOTTOM
    predicted = basis_bytes(n, ROWS, torch.float32) + working_bytes(n, pairs, torch.float32)
    free = available_bytes(setting.device)
    if predicted + 4 * n > RESERVE * free:
        return [_skipped(subject, f"skipped: {predicted / 1e9:.1f} GB of {free / 1e9:.1f} GB")]
    setting.say(f"scaling: n = {subject}")
    op = Diagonal(n, setting.device)

    def solve() -> None:
        eigenpairs(op, top=TOP, bottom=BOTTOM, tol=1e-12, max_matvecs=STEPS, basis_size=ROWS)

    try:
        solve()
        repetitions = setting.repetitions(5 if n < 10_000_000 else 2)
        samples = [seconds_of(solve)[0] / STEPS for _ in range(repetitions)]
        by_allocation = setting.device == "cuda" or n < 10_000_000  # else too many to record
        peak = peak_bytes(solve, setting.device) if by_allocation else _peak_resident(solve)
    except (LipprofError, MemoryError, torch.OutOfMemoryError) as error:
        return [_skipped(subject, f"fails: {error}")]
    step_s = Summary.of(samples).median
    return [
        {
            "problem": f"n = {subject}",
            "method": f"{TOP} + {BOTTOM} pairs, {ROWS} rows",
            "step_s": step_s,
            "nanoseconds": 1e9 * step_s / n,
            "bytes": peak,
            "predicted": predicted,
            "bytes_per_n": peak / n,
        }
    ]


def _skipped(subject: str, reason: str) -> Row:
    return {"problem": f"n = {subject}", "note": reason}


def available_bytes(device: str) -> int:
    """Memory that can be taken without swapping."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return _kilobytes("/proc/meminfo", "MemAvailable") * 1024


def _peak_resident(call: Callable[[], None]) -> int:
    """What the system counts; exact where arrays are large."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _kilobytes("/proc/self/status", "VmRSS")
    call()
    return (_kilobytes("/proc/self/status", "VmHWM") - before) * 1024


def _kilobytes(path: str, field: str) -> int:
    lines = Path(path).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


SECTION = Section(
    name="scaling",
    title="A Lanczos step against n",
    legend=(
        "Full reorthogonalisation in float32 over a diagonal operator. The cost is linear where "
        "nanoseconds and bytes per entry stay what they are. Peak: allocations, on a CPU from "
        "n = 1e7 on resident memory. Predicted: by lipprof, beforehand."
    ),
    columns=(
        Column("problem", "problem"),
        Column("method", "run"),
        Column("step_s", "step", seconds),
        Column("nanoseconds", "ns / n", number),
        Column("bytes", "peak", megabytes),
        Column("predicted", "predicted", megabytes),
        Column("bytes_per_n", "bytes / n", number),
        Column("note", "note"),
    ),
    subjects=SUBJECTS,
    measure=measure,
)
