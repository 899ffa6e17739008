"""Operators that are no dense matrix: large, counted, noisy."""

import torch


class DiagonalOperator:
    """diag(d) in the basis of the coordinates: Lanczos sees only the spectrum."""

    def __init__(self, diagonal):
        self.diagonal = diagonal
        self.n, self.dtype, self.device = len(diagonal), diagonal.dtype, diagonal.device

    def matvec(self, vector):
        return self.diagonal * vector


class Counting:
    """Counts the products of another operator."""

    def __init__(self, op):
        self.op, self.calls = op, 0
        self.n, self.dtype, self.device = op.n, op.dtype, op.device

    def matvec(self, vector):
        self.calls += 1
        return self.op.matvec(vector)


class Noisy(Counting):
    """Products that do not repeat: each is off by ``level`` of its own norm."""

    def __init__(self, op, level):
        super().__init__(op)
        self.level = level
        self.generator = torch.Generator().manual_seed(0)

    def matvec(self, vector):
        image = super().matvec(vector)
        noise = torch.randn(self.n, generator=self.generator, dtype=self.dtype)
        return image + self.level * image.norm() * noise / noise.norm()


def recomputed_residuals(op, pairs):
    """‖A y − θ y‖ by plain float64 arithmetic."""
    images = torch.stack([op.matvec(vector) for vector in pairs.vectors]).double()
    return (images - pairs.values[:, None] * pairs.vectors.double()).norm(dim=1)
