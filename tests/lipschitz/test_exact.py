import math

import pytest
import torch

from lipprof.errors import ShapeError
from lipprof.lipschitz import exact_lipschitz

N, NUMEL = 7, (2, 4, 1)


def rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, N, generator=generator, dtype=torch.float64)


def orthonormal(count):
    return torch.linalg.qr(rows(count, 1).T)[0].T.contiguous()


def tensor_along(vectors):
    """∇(vᵀ H v) = T[v, v, ·] of a random cubic."""
    cubic = torch.randn(N, N, N, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    cubic = sum(cubic.permute(p) for p in [(0, 1, 2), (1, 0, 2), (0, 2, 1)])
    return torch.einsum("ijk,ai,aj->ak", cubic + cubic.transpose(0, 1), vectors, vectors)


def test_of_single_eigenvalues():
    gradients, vectors, step = rows(3), orthonormal(3), rows(1, 2)[0]
    values = torch.tensor([3.0, 1.0, -2.0])
    found = exact_lipschitz(
        gradients,
        vectors,
        values,
        residuals=torch.full((3,), 0.1),
        numel=NUMEL,
        displacement=step,
    )
    torch.testing.assert_close(found.lipschitz, gradients.norm(dim=1))
    torch.testing.assert_close(found.along_eigenspace, (gradients * vectors).sum(1).abs())
    torch.testing.assert_close(found.along_step, (gradients @ step).abs() / step.norm())
    mass = torch.stack([part.square().sum(1) for part in gradients.split(NUMEL, 1)], 1)
    torch.testing.assert_close(found.tensor_share, mass / gradients.square().sum(1, keepdim=True))


def test_a_cluster_is_the_same_in_every_basis():
    vectors, turn = orthonormal(4), torch.linalg.qr(rows(3, 8)[:, :3])[0]
    turned = torch.cat([vectors[:1], turn @ vectors[1:]])
    values = torch.tensor([5.0, 1.0, 1.0, 1.0])
    options = {
        "residuals": torch.full((4,), 1e-3),
        "numel": NUMEL,
        "displacement": rows(1, 2)[0],
    }
    before = exact_lipschitz(tensor_along(vectors), vectors, values, **options)
    after = exact_lipschitz(tensor_along(turned), turned, values, **options)
    for name in ("lipschitz", "along_eigenspace", "along_step", "tensor_share"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name))
    assert (tensor_along(turned)[1] - tensor_along(vectors)[1]).norm() > 0.1


def test_members_of_a_cluster_get_the_gradient_of_its_mean():
    gradients = rows(2)
    found = exact_lipschitz(
        gradients, orthonormal(2), torch.ones(2), residuals=torch.ones(2), numel=NUMEL
    )
    assert found.lipschitz.tolist() == pytest.approx([float(gradients.mean(0).norm())] * 2)


def test_without_a_step_or_a_gradient():
    gradients = torch.stack([torch.zeros(N), torch.full((N,), math.nan)])
    found = exact_lipschitz(
        gradients,
        orthonormal(2).float(),
        torch.tensor([1.0, -1.0]),
        residuals=torch.zeros(2),
        numel=NUMEL,
    )
    assert found.along_step.isnan().all()
    assert found.lipschitz[0] == 0
    assert found.lipschitz[1].isnan()
    assert found.tensor_share[0].tolist() == [0.0] * 3
    assert found.tensor_share[1].isnan().all()


def test_a_step_of_no_length_says_nothing():
    found = exact_lipschitz(
        rows(1),
        orthonormal(1),
        torch.ones(1),
        residuals=torch.zeros(1),
        numel=NUMEL,
        displacement=torch.zeros(N).double(),
    )
    assert found.along_step.isnan().all()


def test_lengths_must_add_up():
    with pytest.raises(ShapeError, match="6 entries together, the gradients 7"):
        exact_lipschitz(
            rows(1), orthonormal(1), torch.ones(1), residuals=torch.zeros(1), numel=(2, 4)
        )
