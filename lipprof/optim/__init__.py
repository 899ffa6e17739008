"""Optimizers: Sophia and AMOS."""
