"""Experiments with AMOS."""
