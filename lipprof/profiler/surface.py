"""What can be asked of a loss surface at one point: eigenpairs, density, trace, blocks, edge."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.curvature import (
    BlockSpec,
    BlockSpectra,
    ParameterOperator,
    ParameterView,
    ProbeLoss,
    Stability,
    block_spectra,
    diagonal_blocks,
    pyhessian_eigenpairs,
    pyhessian_trace,
    refuse,
    stability,
)
from lipprof.linalg import (
    DiagonalEstimate,
    RitzPairs,
    SpectralDensity,
    TraceEstimate,
    eigenpairs,
    hutchinson,
    spectral_density,
    xtrace,
)
from lipprof.profiler.memory import MemoryShare
from lipprof.profiler.progress import watched


class Surface:
    """One matrix of second derivatives at the present parameters; made by ``lipprof.surface``.

    Attributes:
        operator: products with the matrix; ``operator.view`` has the names of the parameters.
        engine: what computes them: ``retained``, ``traced``, ``recomputed``, ``differences``.
        relative_error: of a product by differences or in half precision; 0: rounding alone.
    """

    def __init__(
        self,
        operator: ParameterOperator,
        *,
        engine: str,
        relative_error: float,
        gradient: Float[Tensor, " n"],
        memory: MemoryShare,
        product_bytes: int,
        seed: int,
        progress: bool | None,
    ) -> None:
        self.operator = operator
        self.engine = engine
        self.relative_error = relative_error
        self._gradient, self._seed, self._progress = gradient, seed, progress
        self._memory, self._product_bytes = memory, product_bytes

    def eigenpairs(
        self,
        *,
        top: int = 10,
        bottom: int = 10,
        tol: float = 1e-3,
        max_matvecs: int = 1000,
        basis_size: int | None = None,
    ) -> RitzPairs:
        """Compute the largest and the smallest eigenpairs.

        Args:
            top: number of largest eigenvalues.
            bottom: number of smallest eigenvalues.
            tol: residual over the extreme eigenvalue of the same end.
            max_matvecs: limit of products.
            basis_size: Lanczos vectors kept; default: what is useful and fits the memory limit.

        Returns:
            The pairs; those over tolerance are marked.

        Raises:
            ConfigError: no pair, more than parameters, or a basis that does not fit.
            NonfiniteError: a product is NaN or infinite.
        """
        basis = self._memory.basis(self.operator, top + bottom, self._product_bytes, basis_size)
        with watched(self.operator, "eigenpairs", self._progress) as counted:
            return eigenpairs(
                counted,
                top=top,
                bottom=bottom,
                tol=tol,
                max_matvecs=max_matvecs,
                seed=self._seed,
                **basis,
            )

    def density(self, *, probes: int = 8, steps: int = 64) -> SpectralDensity:
        """Estimate the spectral density by stochastic Lanczos quadrature.

        Args:
            probes: random vectors.
            steps: products for each.

        Returns:
            Nodes and weights, with densities and traces of functions, all with standard errors.
        """
        with watched(self.operator, "density", self._progress) as counted:
            return spectral_density(counted, probes=probes, steps=steps, seed=self._seed)

    def trace(self, *, matvecs: int = 32) -> TraceEstimate:
        """Estimate the trace by XTrace, with its standard error.

        Args:
            matvecs: products.

        Returns:
            Trace, standard error and cost.
        """
        with watched(self.operator, "trace", self._progress) as counted:
            return xtrace(counted, matvecs=matvecs, seed=self._seed)

    def diagonal(self, *, probes: int = 32) -> DiagonalEstimate:
        """Estimate the diagonal, and the trace of every tensor's block, by Hutchinson's method.

        Args:
            probes: products.

        Returns:
            ``diagonal`` (n,), ``part_traces`` (probes, tensors), ``trace``, ``trace_stderr``.
        """
        with watched(self.operator, "diagonal", self._progress) as counted:
            return hutchinson(
                counted, probes=probes, seed=self._seed, parts=self.operator.view.numel
            )

    def blocks(
        self,
        blocks: BlockSpec = "tensor",
        *,
        top: int = 1,
        bottom: int = 1,
        tol: float = 1e-3,
        max_matvecs: int = 300,
    ) -> BlockSpectra:
        """Compute the extreme eigenvalues of diagonal blocks.

        Args:
            blocks: ``"tensor"``, ``"module"``, or patterns of names such as ``"*attention*"``.
            top: number of largest eigenvalues of each.
            bottom: number of smallest eigenvalues of each.
            tol: residual over the extreme eigenvalue of the same end.
            max_matvecs: limit for each block.

        Returns:
            Names, sizes, values, residuals, convergence and cost.

        Raises:
            ConfigError: a pattern that matches nothing.
        """
        return block_spectra(
            diagonal_blocks(self.operator, blocks),
            top=top,
            bottom=bottom,
            tol=tol,
            max_matvecs=max_matvecs,
            seed=self._seed,
        )

    def stability(
        self, optimizer: torch.optim.Optimizer, *, tol: float = 1e-3, max_matvecs: int = 300
    ) -> Stability:
        """Measure how far an optimizer's next step is from the edge of stability.

        Args:
            optimizer: that of the training loop; it is only read.
            tol: relative residual.
            max_matvecs: limit of products.

        Returns:
            ``edge_ratio`` (1 is the edge), and what it is made of.

        Raises:
            ConfigError: no parameter has a diagonal preconditioner.
        """
        return stability(
            self.operator,
            optimizer,
            gradient=self._gradient,
            tol=tol,
            max_matvecs=max_matvecs,
            seed=self._seed,
            **self._memory.basis(self.operator, 1, self._product_bytes),
        )


class PyHessianSurface(Surface):
    """The same by PyHessian, as a second opinion on the top end and the trace."""

    def __init__(self, loss: ProbeLoss, view: ParameterView) -> None:
        self.engine, self.relative_error = "pyhessian", 0.0
        self._loss, self._view = loss, view

    def eigenpairs(
        self,
        *,
        top: int = 10,
        bottom: int = 0,
        tol: float = 1e-3,
        max_matvecs: int = 1000,
        basis_size: int | None = None,  # noqa: ARG002 - power iteration has none
    ) -> RitzPairs:
        """Compute the largest eigenpairs; see ``pyhessian_eigenpairs``."""
        return pyhessian_eigenpairs(
            self._loss,
            self._view,
            top=top,
            bottom=bottom,
            tol=tol,
            max_matvecs=max_matvecs,
            seed=self._loss.seed,
        )

    def trace(self, *, matvecs: int = 32) -> TraceEstimate:
        """Estimate the trace; see ``pyhessian_trace``."""
        return pyhessian_trace(self._loss, self._view, probes=matvecs, seed=self._loss.seed)

    def density(self, *, probes: int = 8, steps: int = 64) -> SpectralDensity:  # noqa: ARG002
        """Refused: see ``refuse``."""
        refuse("density")

    def diagonal(self, *, probes: int = 32) -> DiagonalEstimate:  # noqa: ARG002
        """Refused: see ``refuse``."""
        refuse("diagonal")

    def blocks(self, *_: Any, **__: Any) -> BlockSpectra:
        """Refused: see ``refuse``."""
        refuse("blocks")

    def stability(self, *_: Any, **__: Any) -> Stability:
        """Refused: see ``refuse``."""
        refuse("stability")
