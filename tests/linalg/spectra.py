"""Matrices with a prescribed spectrum."""

import torch


def decaying(n):
    return 2.0 ** -torch.arange(n, dtype=torch.float64)


def clustered(n):
    values = torch.linspace(-0.1, 0.1, n, dtype=torch.float64)
    values[-3:] = torch.tensor([5.0, 5.0 + 1e-3, 9.0])
    return values


def indefinite(n):
    return torch.linspace(-3.0, 7.0, n, dtype=torch.float64)


def rank_deficient(n):
    values = torch.zeros(n, dtype=torch.float64)
    values[:8] = torch.arange(1.0, 9.0)
    return values


def loss_surface(n):
    """A few outliers over a bulk that reaches below zero, as Hessians of networks have."""
    generator = torch.Generator().manual_seed(1)
    bulk = 0.05 * torch.randn(n, generator=generator, dtype=torch.float64)
    bulk[:6] = torch.tensor([40.0, 22.0, 13.0, 8.0, 5.0, 3.0])
    bulk[-2:] = torch.tensor([-2.0, -1.2])
    return bulk


def negative(n):
    return -1.0 - torch.linspace(0.0, 1.0, n, dtype=torch.float64) ** 2


def with_spectrum(values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    basis, _ = torch.linalg.qr(square)
    return basis @ torch.diag(values) @ basis.T
