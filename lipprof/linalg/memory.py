"""What a Lanczos run needs in memory, and the basis that a budget allows.

Three kinds of long vectors: the basis, ``size + 1`` rows; the result, one per pair; and two for the
product at hand.  Blocks of the arithmetic and the small problem are left out: they do not grow with
n.  What the operator itself needs for a product is its own.

A larger basis restarts less and costs fewer products: 5 + 5 pairs of a small convolutional net take
142, 126, 118 for 40, 64, 80 rows, and 113 without restarts; of a small GPT 97, 84, 83, and 82.

The basis is kept in the operator's dtype.  Narrower storage does not reach a tolerance per end:
rows rounded to bfloat16 leave the bottom pairs at 2e-3 of their value, and to float16 (scaled by
√n) at up to 3e-3 where the top eigenvalue is 200 times larger, however long one iterates.
"""

from dataclasses import dataclass

import torch

from lipprof.errors import ConfigError


def default_basis_size(pairs: int) -> int:
    """Lanczos vectors worth keeping: more of them would save hardly a product."""
    return max(64, 8 * pairs)


def basis_bytes(n: int, size: int, dtype: torch.dtype) -> int:
    """Bytes of the basis alone, ``size + 1`` rows of n."""
    return (size + 1) * n * dtype.itemsize


def working_bytes(n: int, pairs: int, dtype: torch.dtype) -> int:
    """Bytes of the other long vectors on the operator's device: ``pairs + 2`` of n."""
    return (pairs + 2) * n * dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class BasisPlan:
    """Arguments of ``eigenpairs`` and the peak they lead to."""

    size: int
    device: torch.device
    bytes: int  # peak on the operator's device
    host_bytes: int  # of the basis, where it is kept on the host; else 0


def plan_basis(
    n: int,
    pairs: int,
    budget_bytes: int,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    host_bytes: int | None = None,
) -> BasisPlan:
    """Choose the largest useful basis that fits.

    On the operator's device if at least half of the useful size fits there; else on the host, for
    an operator on an accelerator; else as small as need be.

    Args:
        n: size of the operator.
        pairs: pairs wanted, both ends.
        budget_bytes: what the operator's device has to spare.
        dtype: of the operator.
        device: of the operator.
        host_bytes: what the host has to spare; default: no limit.

    Returns:
        The plan.

    Raises:
        ConfigError: not even ``pairs + 2`` basis vectors fit.
    """
    device, host = torch.device(device), torch.device("cpu")
    useful, least = min(default_basis_size(pairs), n), min(pairs + 2, n)
    working, row = working_bytes(n, pairs, dtype), n * dtype.itemsize
    fits = {device: (budget_bytes - working) // row - 1}
    if device.type != "cpu" and budget_bytes >= working:
        fits[host] = useful if host_bytes is None else host_bytes // row - 1
    for enough in (max(useful // 2, least), least):
        for home, rows in fits.items():
            if rows >= enough:
                size = min(rows, useful)
                held = basis_bytes(n, size, dtype)
                offloaded = home != device
                return BasisPlan(
                    size=size,
                    device=home,
                    bytes=working + (0 if offloaded else held),
                    host_bytes=held if offloaded else 0,
                )
    needed = working + basis_bytes(n, least, dtype)
    raise ConfigError(
        f"{pairs} eigenpairs of n={n} in {dtype} need at least {needed / 2**20:,.0f} MiB "
        f"({least + 1} basis vectors and {pairs + 2} beside them), but the budget is "
        f"{budget_bytes / 2**20:,.0f} MiB. Ask for fewer pairs or raise the budget."
    )
