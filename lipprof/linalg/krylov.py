"""A Krylov basis and the relation that it satisfies, which survives restarts.

    A Vᵀ = Vᵀ H + v_{j+1} hᵀ        V (j, n) orthonormal rows, H (j, j), h (j,)

The coefficients that two-pass Gram-Schmidt removes from A v *are* the new column of H, all of them,
so the relation holds to rounding and is not an assumption about A: whatever asymmetry or noise the
products have is in H, below or above its diagonal.  For a vector y = Vᵀ s this gives A y, hence the
residual of a Ritz pair, without another product.  Restarted from Ritz vectors S (Wu & Simon 2000),
H becomes Sᵀ H S and h becomes Sᵀ h: the arrow that a restart leaves needs no code of its own.
(Lost then is only the part of A's asymmetry that leads out of the new basis.)

The basis may lie on another device than the operator: only the vector that goes into a product and
the one that comes out travel, and the Gram-Schmidt passes run where the basis is.

``step`` never waits for the device.  Per step: 1 matvec + 8nj flops, the basis read three times.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.linalg.inner import combine, distance, norm, orthogonalise_
from lipprof.linalg.operator import SymmetricOperator

BREAKDOWN_FACTOR = 20


class KrylovBasis:
    """V, H and h, up to ``size`` rows.

    Args:
        op: the operator A; it is asked for products by ``step`` alone.
        size: rows that fit, one more is allocated for v_{j+1}.
        device: of the basis and the coefficients.
        seed: of the random directions.
    """

    def __init__(
        self,
        op: SymmetricOperator,
        size: int,
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        self.op, self.size = op, size
        self.rows = torch.empty(size + 1, op.n, dtype=op.dtype, device=device)
        self.coefficients = torch.zeros(size + 1, size, dtype=torch.float64, device=device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.j = 0
        self.relation_holds = True

    def insert_direction(self, start: Float[Tensor, " n"] | None = None) -> None:
        """Make v_{j+1} a random direction, or ``start``, orthogonal to the rows before it."""
        vector = self.rows[self.j]
        if start is None:
            vector.normal_(generator=self.generator)
        else:
            vector.copy_(start)
        orthogonalise_(vector, self.rows[: self.j])
        vector.div_(norm(vector).to(vector.dtype))
        self.coefficients[self.j].zero_()

    def step(self) -> None:
        """Append A v_{j+1}, orthogonalised: one matvec."""
        j = self.j
        following = self.rows[j + 1]
        following.copy_(self.op.matvec(self.rows[j].to(self.op.device)))
        removed = orthogonalise_(following, self.rows[: j + 1])
        beta = norm(following)
        self.coefficients[: j + 1, j] = removed
        self.coefficients[j + 1, j] = beta
        following.div_(beta.to(following.dtype))
        self.j += 1

    def relation(self) -> Float[Tensor, "j1 j"]:
        """Copy H and, as last row, h to the host: waits for the device.

        Where the relation does not hold, what is missing below H's diagonal is taken from above it.

        Returns:
            In float64.
        """
        matrix = self.coefficients[: self.j + 1, : self.j].to("cpu", copy=True)
        if not self.relation_holds:
            matrix[:-1] = matrix[:-1].triu() + matrix[:-1].triu(1).T
        return matrix

    def closed_at(self, relation: Float[Tensor, "j1 j"], since: int = 0) -> int | None:
        """Find a breakdown: rows that span an invariant subspace, β ≤ 20 eps ‖H‖.

        Args:
            relation: of this basis.
            since: rows before are known to go on.

        Returns:
            How many rows span it; None: no breakdown.
        """
        scale = relation.diagonal().abs().nan_to_num(0.0, 0.0, 0.0).max()
        threshold = BREAKDOWN_FACTOR * torch.finfo(self.op.dtype).eps * scale
        broken = (relation.diagonal(-1)[since:] <= threshold).nonzero().flatten()
        return since + int(broken[0]) + 1 if len(broken) else None

    def cut(self, j: int) -> None:
        """Keep the first j rows, which span an invariant subspace: h = 0."""
        self.j = j
        self.coefficients[j].zero_()
        self.rows[j].zero_()

    def combine(self, weights: Float[Tensor, "j k"]) -> Float[Tensor, "k n"]:
        """The vectors weightsᵀ V, on the operator's device."""
        shape = weights.shape[1], self.op.n
        vectors = torch.empty(shape, dtype=self.op.dtype, device=self.rows.device)
        combine(self.rows[: self.j], weights, vectors)
        return vectors.to(self.op.device)

    def restart(self, weights: Float[Tensor, "j k"], relation: Float[Tensor, "j1 j"]) -> None:
        """Replace V by weightsᵀ V (orthonormal columns) and keep v_{j+1}: no matvec."""
        kept = weights.shape[1]
        combine(self.rows[: self.j], weights, self.rows[:kept])
        self.rows[kept] = self.rows[self.j]
        self.coefficients.zero_()
        self.coefficients[:kept, :kept] = (weights.T @ relation[:-1] @ weights).to(self.rows.device)
        self.coefficients[kept, :kept] = (relation[-1] @ weights).to(self.rows.device)
        self.j = kept

    def relation_error(
        self,
        image: Float[Tensor, " n"],
        weights: Float[Tensor, " j"],
        relation: Float[Tensor, "j1 j"],
    ) -> float:
        """Distance of A y, y = Vᵀ ``weights``, from what the relation says of it."""
        expected = relation @ weights
        return float(distance(image.to(self.rows.device), self.rows[: self.j + 1], expected))
