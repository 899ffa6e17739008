"""How a memory limit is divided: what is kept, the products, and what is left for the basis."""

from dataclasses import dataclass
from typing import Any

import torch

from lipprof.curvature import ParameterView
from lipprof.linalg import (
    SymmetricOperator,
    basis_bytes,
    default_basis_size,
    plan_basis,
    working_bytes,
)
from lipprof.profiler.estimates.candidates import wants_candidates
from lipprof.settings import Settings

REHEARSAL_VECTORS = 6  # copies of parameters, gradients and two moments; two steps


def kept_vectors(settings: Settings) -> int:
    """Vectors of n that an ``Observer`` keeps, or makes in passing, until the next measurement.

    Args:
        settings: of the run.

    Returns:
        θ twice, the diagonal, one per pair, or three where the exact estimate is asked for, and
        what the next steps of two Adam-like optimizers take.
    """
    pairs = (settings.top + settings.bottom) * (3 if settings.exact else 1)
    return 3 + pairs + (REHEARSAL_VECTORS if wants_candidates(settings) else 0)


@dataclass(frozen=True, slots=True)
class Vectors:
    """Bytes of the vectors of n that a measurement takes, in a usual basis."""

    rows: int  # of the Lanczos basis
    working: int  # the basis, and what goes with it
    kept: int  # until the next measurement


def foreseen_vectors(settings: Settings, n: int, dtype: torch.dtype) -> Vectors:
    """Foresee the vectors of a measurement without a memory limit.

    Args:
        settings: of the run.
        n: number of parameters.
        dtype: of the vectors.

    Returns:
        Their sizes.
    """
    pairs = settings.top + settings.bottom
    rows = settings.basis_size or min(default_basis_size(pairs), n)
    working = basis_bytes(n, rows, dtype) + working_bytes(n, pairs, dtype)
    return Vectors(rows, working, kept_vectors(settings) * n * dtype.itemsize)


@dataclass(frozen=True, slots=True)
class MemoryShare:
    """Divides a limit in bytes, of all that lipprof may take beyond training; None: no limit."""

    limit: int | None
    view: ParameterView
    pairs: int  # eigenpairs that will be asked for
    kept_vectors: int = 0  # vectors of n that outlive a measurement

    @property
    def for_products(self) -> int | None:
        """Bytes that products of the operator may take, so that a small basis still fits."""
        if self.limit is None:
            return None
        least = min(self.pairs + 2, self.view.n)
        return (
            self.limit
            - self._kept
            - working_bytes(self.view.n, self.pairs, self.view.dtype)
            - basis_bytes(self.view.n, least, self.view.dtype)
        )

    def basis(
        self, operator: SymmetricOperator, pairs: int, product_bytes: int, size: int | None = None
    ) -> dict[str, Any]:
        """Plan the Lanczos basis.

        Args:
            operator: the operator.
            pairs: eigenpairs wanted now.
            product_bytes: what its products take.
            size: insisted on, whatever the limit.

        Returns:
            ``basis_size`` and ``basis_device``, arguments of ``eigenpairs``.

        Raises:
            ConfigError: not even the smallest basis fits.
        """
        if self.limit is None or size is not None:
            return {"basis_size": size}
        spare = self.limit - self._kept - product_bytes
        plan = plan_basis(operator.n, pairs, spare, operator.dtype, operator.device)
        return {"basis_size": plan.size, "basis_device": plan.device}

    @property
    def _kept(self) -> int:
        return self.kept_vectors * self.view.n * self.view.dtype.itemsize
