"""Hessians by other channels than double backward."""

import torch


def finite_difference_hessian(loss, parameters, epsilon=1e-5):
    """Central differences of gradients, in float64; (n, n)."""
    parameters = list(parameters)
    shapes = [p.shape for p in parameters]
    flat = torch.cat([p.detach().flatten() for p in parameters])
    assert flat.dtype == torch.float64

    def gradient_at(point):
        for p, part in zip(parameters, point.split([s.numel() for s in shapes]), strict=True):
            p.data.copy_(part.view(p.shape))
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss(), parameters)])

    rows = []
    for i in range(len(flat)):
        step = torch.zeros_like(flat)
        step[i] = epsilon
        rows.append((gradient_at(flat + step) - gradient_at(flat - step)) / (2 * epsilon))
    gradient_at(flat)
    hessian = torch.stack(rows)
    return (hessian + hessian.T) / 2
