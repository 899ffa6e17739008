"""Symmetric eigenvalue problems and stochastic estimates: tensors and a matvec, nothing else."""

from lipprof.linalg.lanczos import eigenpairs
from lipprof.linalg.operator import DenseOperator, SymmetricOperator, materialise
from lipprof.linalg.ritz import RitzPairs, SpectrumStatus
from lipprof.linalg.stochastic import DiagonalEstimate, hutchinson, rademacher

__all__ = [
    "DenseOperator",
    "DiagonalEstimate",
    "RitzPairs",
    "SpectrumStatus",
    "SymmetricOperator",
    "eigenpairs",
    "hutchinson",
    "materialise",
    "rademacher",
]
