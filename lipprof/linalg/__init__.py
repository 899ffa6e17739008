"""Symmetric eigenvalue problems and stochastic estimates: tensors and a matvec, nothing else."""
