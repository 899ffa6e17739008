"""Symmetric eigenvalue problems and stochastic estimates: tensors and a matvec, nothing else."""

from lipprof.linalg.density import SpectralDensity, spectral_density
from lipprof.linalg.extremes import eigenpairs, expected_matvecs
from lipprof.linalg.memory import (
    BasisPlan,
    basis_bytes,
    default_basis_size,
    plan_basis,
    working_bytes,
)
from lipprof.linalg.operator import DenseOperator, SymmetricOperator, materialise
from lipprof.linalg.ritz import RitzPairs, SpectrumStatus
from lipprof.linalg.stochastic import DiagonalEstimate, hutchinson, rademacher, standard_error
from lipprof.linalg.trace import TraceEstimate, xtrace

__all__ = [
    "BasisPlan",
    "DenseOperator",
    "DiagonalEstimate",
    "RitzPairs",
    "SpectralDensity",
    "SpectrumStatus",
    "SymmetricOperator",
    "TraceEstimate",
    "basis_bytes",
    "default_basis_size",
    "eigenpairs",
    "expected_matvecs",
    "hutchinson",
    "materialise",
    "plan_basis",
    "rademacher",
    "spectral_density",
    "standard_error",
    "working_bytes",
    "xtrace",
]
