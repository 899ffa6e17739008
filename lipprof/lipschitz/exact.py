"""Exact local Hessian-Lipschitz parameters, from the gradients ∇λᵢ of the eigenvalues.

By Hellmann and Feynman ∇_θ λᵢ = ∇_θ(vᵢᵀ H vᵢ) at fixed vᵢ.  Then ‖∇λᵢ‖ is the local Lipschitz
constant of λᵢ, |∇λᵢ·vᵢ| that along its own eigenspace (Assumption 2's form), and |∇λᵢ·Δθ| / ‖Δθ‖
that along a step, which the drift of λᵢ over the step tends to.  One measurement is enough, and no
minibatch noise is in it.

Departs from that where eigenvalues cannot be told apart (``clusters``): a multiple eigenvalue has
no gradient, and vᵢᵀ H vᵢ depends on the basis.  Each member then gets the gradient of the cluster's
mean eigenvalue, which is smooth and the same in every basis, and its projection onto the whole
eigenspace.  Near a crossing the gradient holds only as far as the eigenvalues stay apart: the
report shows the gap to the nearest of them beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.errors import ShapeError
from lipprof.linalg.inner import dot, norm
from lipprof.lipschitz.clusters import clusters


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactLipschitz:
    """Of k eigenpairs; float64, on the CPU.  Unit: loss/param³ where no other is given."""

    lipschitz: Float[Tensor, " k"]  # ‖∇λᵢ‖
    along_eigenspace: Float[Tensor, " k"]  # |∇λᵢ·vᵢ|
    along_step: Float[Tensor, " k"]  # |∇λᵢ·Δθ| / ‖Δθ‖; NaN without a step
    tensor_share: Float[Tensor, "k T"]  # of ‖∇λᵢ‖² in each tensor, 1; zeros where ∇λᵢ = 0


def exact_lipschitz(
    gradients: Float[Tensor, "k n"],
    vectors: Float[Tensor, "k n"],
    values: Float[Tensor, " k"],
    *,
    residuals: Float[Tensor, " k"],
    numel: Sequence[int],
    displacement: Float[Tensor, " n"] | None = None,
) -> ExactLipschitz:
    """Reduce gradients of eigenvalues to Lipschitz parameters.

    Args:
        gradients: ∇(vᵢᵀ H vᵢ), one a row; NaN rows give NaN, also to their cluster.
        vectors: orthonormal rows vᵢ.
        values: λᵢ.
        residuals: ‖H vᵢ − λᵢ vᵢ‖.
        numel: length of each tensor, in flat order.
        displacement: Δθ, of any length.

    Returns:
        The parameters.  Memory beside the arguments: n numbers, and a copy of the gradients of a
        cluster.

    Raises:
        ShapeError: the tensors' lengths do not add up to n.
    """
    count, n = gradients.shape
    if sum(numel) != n:
        raise ShapeError(f"The tensors have {sum(numel)} entries together, the gradients {n}.")
    labels = clusters(values, residuals)
    lipschitz, along_eigenspace, along_step = torch.full((3, count), torch.nan).double()
    share = torch.zeros(count, len(numel), dtype=torch.float64)
    for label in labels.unique():
        members = torch.nonzero(labels == label)[:, 0]
        rows = members.tolist()
        gradient = gradients[rows[0]] if len(rows) == 1 else gradients[rows].mean(0)
        parts = torch.stack([norm(part) for part in gradient.split(list(numel))]).cpu()
        total = torch.linalg.vector_norm(parts)
        lipschitz[members] = total
        share[members] = torch.where(total == 0, 0.0, parts / total).square()
        components = torch.stack([dot(vectors[row], gradient) for row in rows])
        along_eigenspace[members] = torch.linalg.vector_norm(components).cpu()
        if displacement is not None:
            slope = dot(gradient, displacement.to(gradient)).abs() / norm(displacement)
            along_step[members] = slope.cpu()
    return ExactLipschitz(
        lipschitz=lipschitz,
        along_eigenspace=along_eigenspace,
        along_step=along_step,
        tensor_share=share,
    )
