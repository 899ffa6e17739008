"""Spectral density by stochastic Lanczos quadrature (Ubaru, Chen, Saad 2017; Lin, Saad, Yang 2016).

From a random unit vector v, m Lanczos steps give T (m, m) with eigenvalues θ and first components
s of its eigenvectors, and then, exact for polynomials f of degree 2m − 1,

    vᵀ f(A) v ≈ Σ_k s_k² f(θ_k),        E[vᵀ f(A) v] = tr f(A) / n

Every probe is one such Gauss quadrature of the whole spectrum.  Anything linear in the density (its
smoothed curve, the cumulative distribution, the trace of a function) is the mean over the probes,
with a standard error that covers the probes' randomness; what m steps cannot resolve is not in it.
Full reorthogonalisation: without it, copies of the outliers would take weight from the bulk.

Cost: probes · steps matvecs.  Memory: (steps + 1) · n · itemsize, the same for all probes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.errors import ConfigError, NonfiniteError
from lipprof.linalg.krylov import KrylovBasis
from lipprof.linalg.operator import SymmetricOperator
from lipprof.linalg.stochastic import rademacher, standard_error

BREAKDOWN_FACTOR = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """Means over the probes and their standard errors, NaN for a single probe."""

    mean: Float[Tensor, " x"]
    stderr: Float[Tensor, " x"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectralDensity:
    """P Gauss quadratures of m nodes for the distribution of n eigenvalues; float64, on the CPU.

    Where a Krylov space closed early, the nodes left over have weight 0.
    """

    nodes: Float[Tensor, "P m"]  # rising
    weights: Float[Tensor, "P m"]  # sum to 1 for each probe
    n: int
    num_matvecs: int

    def integrate(self, values: Float[Tensor, "P m x"]) -> Estimates:
        """Integrals of functions that are given by their values at the nodes.

        Returns:
            (x,) integrals over the distribution, which has mass 1.
        """
        samples = torch.einsum("pm,pmx->px", self.weights, values)
        return Estimates(mean=samples.mean(0), stderr=standard_error(samples))

    def trace(self, function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """Trace of a function of the matrix.

        Args:
            function: elementwise, on eigenvalues.

        Returns:
            tr f(A) and its standard error.
        """
        result = self.integrate(function(self.nodes)[..., None])
        return self.n * float(result.mean), self.n * float(result.stderr)

    @property
    def default_width(self) -> float:
        """Spread of the nodes over their number: about their distance within the bulk."""
        return float(self.nodes.max() - self.nodes.min()) / self.nodes.shape[1]

    def grid(self, points: int = 500, *, width: float | None = None) -> Float[Tensor, " x"]:
        """Evenly spaced points that reach four widths beyond the outermost nodes."""
        margin = 4 * (self.default_width if width is None else width)
        return torch.linspace(
            float(self.nodes.min()) - margin,
            float(self.nodes.max()) + margin,
            points,
            dtype=torch.float64,
        )

    def density(self, grid: Float[Tensor, " x"], *, width: float | None = None) -> Estimates:
        """Density smoothed by a Gaussian.

        Args:
            grid: where to evaluate; unit of the eigenvalues.
            width: standard deviation of the Gaussian; default ``default_width``.

        Returns:
            Density per unit of the eigenvalue, mass 1.

        Raises:
            ConfigError: the width is not positive.
        """
        width = self.default_width if width is None else width
        if not width > 0:
            raise ConfigError(
                f"The density's smoothing width is {width}: it must be positive. The default is "
                "zero when all eigenvalues are equal; give one."
            )
        distance = (grid.double() - self.nodes[..., None]) / width
        return self.integrate((-distance.square() / 2).exp() / (width * (2 * torch.pi) ** 0.5))

    def cumulative(self, grid: Float[Tensor, " x"]) -> Estimates:
        """Fraction of the eigenvalues that are at most ``grid``, not smoothed."""
        return self.integrate((self.nodes[..., None] <= grid.double()).double())


def spectral_density(
    op: SymmetricOperator,
    *,
    probes: int = 8,
    steps: int = 64,
    kind: Literal["rademacher", "gaussian"] = "rademacher",
    seed: int = 0,
) -> SpectralDensity:
    """Estimate the distribution of all eigenvalues.

    Args:
        op: a symmetric operator.
        probes: random vectors; the standard error falls as 1/√probes.
        steps: Lanczos steps for each; the resolution is about the spread over ``steps``.
        kind: of the vectors, both normalised.
        seed: of the vectors.

    Returns:
        The quadratures.

    Raises:
        ConfigError: ``probes`` or ``steps`` less than 1.
        NonfiniteError: a matvec returned NaN or infinity.
    """
    if probes < 1 or steps < 1:
        raise ConfigError(f"Got probes={probes} and steps={steps}: both must be at least 1.")
    steps = min(steps, op.n)
    basis = KrylovBasis(op, steps, device=torch.device(op.device), seed=seed)
    generator = torch.Generator(op.device).manual_seed(seed)
    quadratures = []
    for _ in range(probes):
        start = rademacher(op, generator) if kind == "rademacher" else None
        basis.j = 0
        basis.insert_direction(start)
        for _ in range(steps):
            basis.step()
        quadratures.append(_gauss_quadrature(basis))
    nodes, weights = (torch.stack(part) for part in zip(*quadratures, strict=True))
    return SpectralDensity(nodes=nodes, weights=weights, n=op.n, num_matvecs=probes * steps)


def _gauss_quadrature(basis: KrylovBasis) -> tuple[Tensor, Tensor]:
    """Nodes and weights of one run, cut where the Krylov space closed."""
    relation = basis.relation()
    length = basis.closed_at(relation) or basis.j
    projected = relation[:length, :length]
    if not projected.isfinite().all():
        raise NonfiniteError("A matrix-vector product returned NaN or infinity in the density.")
    values, vectors = torch.linalg.eigh(projected, UPLO="U")
    nodes = torch.cat([values, values[-1:].expand(basis.j - length)])
    weights = torch.cat([vectors[0].square(), torch.zeros(basis.j - length).double()])
    return nodes, weights
