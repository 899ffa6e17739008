"""Extreme eigenvalues of diagonal blocks through training: where the loss is sharp."""

from typing import Any

import numpy as np

from lipprof.curvature import (
    LossHessian,
    ParameterView,
    block_spectra,
    blocks_of,
    diagonal_blocks,
)
from lipprof.profiler.estimates.attempts import Attempts
from lipprof.profiler.memory import MemoryShare
from lipprof.settings import Settings


def block_names(view: ParameterView, settings: Settings) -> tuple[str, ...]:
    """Name the blocks that the settings ask for.

    Args:
        view: the profiled parameters.
        settings: of the run.

    Returns:
        One name per block, as in ``blocks_of``; empty where none were asked for.

    Raises:
        ConfigError: a pattern that matches nothing.
    """  # noqa: DOC502 - raised by blocks_of
    return () if settings.blocks is None else tuple(blocks_of(view, settings.blocks))


class BlockObserver:
    """Measures the blocks; a failure leaves their numbers open and the measurement whole.

    Args:
        settings: of the run.
        memory: bounds the Lanczos basis.
    """

    def __init__(self, settings: Settings, memory: MemoryShare) -> None:
        self._settings, self._memory = settings, memory
        self._attempts = Attempts(strict=settings.strict)

    def observe(
        self, operator: LossHessian, product_bytes: int, fields: dict[str, Any]
    ) -> dict[str, Any]:
        """Compute the largest and the smallest eigenvalue of every block.

        Args:
            operator: the Hessian.
            product_bytes: what its products take.
            fields: of the measurement; ``reason`` takes in a failure.

        Returns:
            Further fields of the measurement, none where it failed; ``num_matvecs`` counts
            products with blocks, of which many cost less than one with the whole.
        """

        def measured() -> dict[str, Any]:
            return self._spectra(operator, product_bytes)

        return self._attempts.attempt("blocks", measured, fields) or {}

    def _spectra(self, operator: LossHessian, product_bytes: int) -> dict[str, Any]:
        settings = self._settings
        assert settings.blocks is not None
        found = block_spectra(
            diagonal_blocks(operator, settings.blocks),
            tol=settings.tol,
            max_matvecs=settings.max_matvecs,
            seed=settings.seed,
            **self._memory.basis(operator, 2, product_bytes, settings.basis_size),
        )
        (largest, smallest), residuals = found.values.T.numpy(), found.residuals.T.numpy()
        return {
            "block_largest": largest,
            "block_smallest": smallest,
            "block_largest_residual": residuals[0],
            "block_smallest_residual": residuals[1],
            "block_converged": found.converged.all(dim=1).numpy().astype(np.int8),
            "num_matvecs": int(found.num_matvecs.sum()),
        }
