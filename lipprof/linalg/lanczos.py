"""Thick-restart Lanczos for both ends of the spectrum at once.

Keeps A Vᵀ = Vᵀ T + β v eᵀ with orthonormal rows V (j, n) and T (j, j) = V A Vᵀ.  When the basis is
full it restarts from the best Ritz vectors of both ends (Wu & Simon 2000), which costs no matvec.

Departs from the textbook in four ways:
1. Full reorthogonalisation, two passes; the coefficients it removes *are* the new column of T, so
   the arrow that a restart leaves in T needs no code of its own.  T is float64 whatever V is.
2. A tolerance per end: the bottom end of a loss surface is a clustered bulk edge, far smaller than
   the top eigenvalue, and "converged relative to the largest" would say nothing about it.
3. A Krylov space holds each eigenvalue once, whatever its multiplicity.  After a breakdown (an
   invariant subspace, β ≤ 20 eps ‖T‖), and when a wanted eigenvalue is numerically zero (a
   singular Hessian has many), the run goes on from a fresh random direction until that leaves
   the wanted values as they were.
4. ``_step`` never waits for the device; only ``_inspect``, every CHECK_EVERY steps, does.

Per step: 1 matvec + 8nj flops.  Memory: (basis_size + 1) · n · itemsize.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.errors import ConfigError, NonfiniteError
from lipprof.linalg.inner import combine, norm, orthogonalise
from lipprof.linalg.operator import SymmetricOperator, materialise
from lipprof.linalg.ritz import RitzPairs, measure_ritz_pairs, precision_floor, tolerances

DENSE_LIMIT = 96
"""Up to this n, the n matvecs of the whole matrix cost no more than 5 + 5 pairs by Lanczos do."""
CHECK_EVERY = 3
BREAKDOWN_FACTOR = 20
EXPLORE = 2 * CHECK_EVERY  # steps from a random direction before it may count as fruitless


def default_basis_size(pairs: int) -> int:
    """Lanczos vectors to keep: 40 costs at most 2 % more matvecs than never to restart (5 + 5)."""
    return max(40, 4 * pairs)


def eigenpairs(
    op: SymmetricOperator,
    *,
    top: int,
    bottom: int,
    tol: float = 1e-3,
    max_matvecs: int = 300,
    basis_size: int | None = None,
    seed: int = 0,
) -> RitzPairs:
    """Compute the ``top`` largest and ``bottom`` smallest eigenpairs.

    Args:
        op: a symmetric operator.
        top: number of largest eigenvalues.
        bottom: number of smallest eigenvalues.
        tol: residual over the extreme eigenvalue of the same end.
        max_matvecs: limit, without the one matvec per pair that measures the residuals.
        basis_size: Lanczos vectors kept; default ``default_basis_size``.
        seed: of the start vector.

    Returns:
        top + bottom pairs; those over tolerance are marked.

    Raises:
        ConfigError: no pair, or more pairs than n, asked for; a basis too small for them.
        NonfiniteError: a matvec returned NaN or infinity.
    """
    pairs = top + bottom
    if pairs < 1 or pairs > op.n:
        raise ConfigError(
            f"Asked for top={top} and bottom={bottom} eigenpairs of an operator with n={op.n}: "
            f"top + bottom must be between 1 and {op.n}."
        )
    if op.n <= max(DENSE_LIMIT, pairs + 2):
        return _dense(op, top=top, bottom=bottom, tol=tol)
    size = min(basis_size or default_basis_size(pairs), op.n)
    if size < pairs + 2:
        raise ConfigError(
            f"basis_size={size} is too small for {pairs} pairs: use {pairs + 2} or more."
        )
    run = _Lanczos(op, top=top, bottom=bottom, tol=tol, size=size, seed=seed)
    vectors = run.solve(max_matvecs)
    return measure_ritz_pairs(
        op, vectors, top=top, tol=tol, scale=run.scale, num_matvecs=run.num_matvecs
    )


def _dense(op: SymmetricOperator, *, top: int, bottom: int, tol: float) -> RitzPairs:
    matrix = materialise(op)
    if not matrix.isfinite().all():
        raise NonfiniteError(_NONFINITE)
    values, vectors = torch.linalg.eigh(matrix)
    rows = vectors.T.flip(0).to(op.dtype)
    chosen = torch.cat([rows[:top], rows[op.n - bottom :]])
    scale = float(values.abs().max())
    return measure_ritz_pairs(op, chosen, top=top, tol=tol, scale=scale, num_matvecs=op.n)


_NONFINITE = (
    "A matrix-vector product returned NaN or infinity: the loss has no finite curvature here. "
    "Check the loss on this batch for overflow, log(0) or sqrt(0)."
)


@dataclass(frozen=True, slots=True)
class _Ritz:
    """Eigen-decomposition of T and the residual estimates β|s| that decide when to stop."""

    values: Float[Tensor, " j"]  # rising
    weights: Float[Tensor, "j j"]
    estimates: Float[Tensor, " j"]


class _Lanczos:
    def __init__(
        self, op: SymmetricOperator, *, top: int, bottom: int, tol: float, size: int, seed: int
    ) -> None:
        self.op, self.top, self.bottom, self.tol, self.size = op, top, bottom, tol, size
        self.generator = torch.Generator(op.device).manual_seed(seed)
        like = {"dtype": op.dtype, "device": op.device}
        self.basis = torch.empty(size + 1, op.n, **like)
        self.projected = torch.zeros(size, size, dtype=torch.float64, device=op.device)
        self.beta = torch.zeros(size, dtype=torch.float64, device=op.device)
        self.num_matvecs = 0
        self.scale = 0.0  # ‖T‖, the best estimate of ‖A‖
        self.j = self._inspected_at = 0
        self._random_at: int | None = None  # where a random direction was inserted last
        self._values_then: Tensor | None = None  # the wanted values at that time
        self._insert_random_direction()

    def solve(self, max_matvecs: int) -> Float[Tensor, "k n"]:
        """Iterate until both ends converge or the budget is spent.

        Returns:
            The wanted Ritz vectors, top end first, each end in falling order of value.
        """
        while True:
            self._step()
            spent = self.num_matvecs >= max_matvecs and self.j >= self.top + self.bottom
            if not (spent or self.j == self.size or self.j - self._inspected_at >= CHECK_EVERY):
                continue
            ritz = self._inspect()
            done = self._converged(ritz)
            if spent or self.j == self.op.n or (done.all() and self._settled(ritz)):
                return self._wanted_vectors(ritz)
            if self.j == self.size:
                self._restart(ritz, self._worth_keeping(done))

    def _step(self) -> None:
        image = self.op.matvec(self.basis[self.j])
        remainder, column = orthogonalise(image, self.basis[: self.j + 1])
        self.projected[: self.j + 1, self.j] = column
        beta = norm(remainder)
        self.beta[self.j] = beta
        torch.div(remainder, beta.to(remainder.dtype), out=self.basis[self.j + 1])
        self.num_matvecs += 1
        self.j += 1

    def _inspect(self) -> _Ritz:
        """Bring T to the host, cut the basis at a breakdown, and solve the small problem."""
        projected = self.projected[: self.j, : self.j].cpu()
        beta = self.beta[: self.j].cpu()
        scale = projected.diagonal().abs().nan_to_num(0.0, 0.0, 0.0).max()
        threshold = BREAKDOWN_FACTOR * torch.finfo(self.op.dtype).eps * scale
        broken = (beta <= threshold).nonzero().flatten()
        broken = broken[broken >= self._inspected_at]
        if len(broken):
            self.j = self._random_at = int(broken[0]) + 1
            self.beta[self.j - 1] = 0.0
            projected, beta = projected[: self.j, : self.j], beta[: self.j]
            beta[-1] = 0.0
            if self.j < self.op.n:
                self._insert_random_direction()
        if not (projected.triu().isfinite().all() and beta.isfinite().all()):
            raise NonfiniteError(_NONFINITE)
        self._inspected_at = self.j
        values, weights = torch.linalg.eigh(projected, UPLO="U")
        self.scale = float(values.abs().max())
        return _Ritz(values, weights, (beta[-1] * weights[-1]).abs())

    def _insert_random_direction(self) -> None:
        """Make ``basis[j]`` a random unit vector orthogonal to those before it."""
        vector = torch.randn(
            self.op.n, generator=self.generator, dtype=self.op.dtype, device=self.op.device
        )
        vector = vector / norm(vector).to(vector.dtype)
        remainder, _ = orthogonalise(vector, self.basis[: self.j])
        self.basis[self.j] = remainder / norm(remainder).to(remainder.dtype)

    def _wanted(self, j: int) -> Tensor:
        """Indices of the wanted pairs in rising order of value, top end first, falling."""
        top = torch.arange(j - 1, j - 1 - self.top, -1)
        return torch.cat([top, torch.arange(self.bottom - 1, -1, -1)])

    def _converged(self, ritz: _Ritz) -> Tensor:
        """Which wanted pairs meet their tolerance by estimate, (top + bottom,) bool."""
        if self.j < self.top + self.bottom:
            return torch.zeros(self.top + self.bottom, dtype=torch.bool)
        index = self._wanted(self.j)
        values = ritz.values[index]
        return ritz.estimates[index] <= self._limits(values)

    def _limits(self, values: Tensor) -> Tensor:
        floor = precision_floor(self.scale, self.op.dtype)
        return tolerances(values, top=self.top, tol=self.tol).clamp(min=floor)

    def _settled(self, ritz: _Ritz) -> bool:
        """Decide whether the converged values are all there; if in doubt, go on looking.

        Without a breakdown or a zero eigenvalue they count as such.  Otherwise a random direction
        must have left them unchanged; when it has not, the next one is inserted here.

        Returns:
            True to stop.
        """
        values = ritz.values[self._wanted(self.j)]
        singular = bool((values.abs() <= precision_floor(self.scale, self.op.dtype)).any())
        if self._random_at is None and not singular:
            return True
        at_breakdown = self.j == self._random_at
        if self._random_at is not None and not at_breakdown and self.j - self._random_at < EXPLORE:
            return False
        before, self._values_then = self._values_then, values
        if before is not None and bool(((values - before).abs() <= self._limits(values)).all()):
            return True
        if not at_breakdown:
            self._restart(ritz, self._wanted(self.j))
            self._insert_random_direction()
            self._random_at = self.j
        return False

    def _wanted_vectors(self, ritz: _Ritz) -> Float[Tensor, "k n"]:
        index = self._wanted(self.j)
        vectors = torch.empty(len(index), self.op.n, dtype=self.op.dtype, device=self.op.device)
        combine(self.basis[: self.j], ritz.weights[:, index], vectors)
        return vectors

    def _worth_keeping(self, done: Tensor) -> Tensor:
        """Indices of the wanted pairs and of half of what else fits, at the ends still at work."""
        spare = (self.size - self.top - self.bottom) // 2
        top_done, bottom_done = bool(done[: self.top].all()), bool(done[self.top :].all())
        spare_top = 0 if top_done else spare if bottom_done else spare // 2
        top = torch.arange(self.j - self.top - spare_top, self.j)
        return torch.cat([torch.arange(self.bottom + spare - spare_top), top])

    def _restart(self, ritz: _Ritz, index: Tensor) -> None:
        """Replace the basis by the Ritz vectors at ``index`` and the direction that comes next."""
        kept = len(index)
        following = self.basis[self.j].clone()
        combine(self.basis[: self.j], ritz.weights[:, index], self.basis[:kept])
        self.basis[kept] = following
        self.projected.zero_()
        self.projected[:kept, :kept] = torch.diag(ritz.values[index]).to(self.projected)
        self.j = self._inspected_at = kept
        if self._random_at is not None:
            self._random_at = kept
