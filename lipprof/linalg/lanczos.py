"""Thick-restart Lanczos for both ends of the spectrum at once (Wu & Simon 2000).

Departs from the textbook in five ways:
1. Full reorthogonalisation; the small matrix T is what it removed (``krylov``), float64 throughout.
2. A tolerance per end: the bottom end of a loss surface is a clustered bulk edge, far smaller than
   the top eigenvalue, and "converged relative to the largest" would say nothing about it.
3. The residual that decides when to stop is computed from the Krylov relation, with the asymmetry
   of the products in it; β|s| alone falls to 1e-29.  The relation is checked at the end by *one*
   matvec of all wanted vectors, summed with random signs c: ‖Σ cᵢeᵢ‖² has mean Σ‖eᵢ‖², eᵢ being
   the errors of the residuals.  If that is too much beside the tolerances (products that do not
   repeat, a relation lost), every vector gets a matvec of its own.
4. A Krylov space holds each eigenvalue once, whatever its multiplicity (rounding brings the copies
   in, but later).  After a breakdown (an invariant subspace, β ≤ 20 eps ‖T‖), when a wanted
   eigenvalue is numerically zero (a singular Hessian has many), and on demand, the run goes on
   from a fresh random direction until that leaves the wanted values as they were.
5. A restart keeps a quarter of the unwanted Ritz vectors: 3 to 7 % fewer products than with
   half of them (40 rows).

The floor is what one Krylov space can do without restarts; ``memory.default_basis_size`` comes
within a few percent of it.  The device is waited for only in ``_inspect``.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.errors import NonfiniteError
from lipprof.linalg.krylov import KrylovBasis
from lipprof.linalg.ritz import (
    RitzPairs,
    measure_explicitly,
    precision_floor,
    ritz_pairs,
    tolerances,
)

CHECK_EVERY = 3  # steps, where a check costs as much as a step: on a GPU, or with a tiny operator
TINY = 10_000
EXPLORE = 6  # steps from a random direction before it may count as fruitless
MARGIN = 0.95  # of the tolerance, to stop at
LOOSE_MARGIN = 0.8  # where a part of the residuals is not seen before the end
CERTIFIED = 0.3  # of the tolerance: error that leaves MARGIN within it, √(0.95² + 0.3²) < 1


NONFINITE = (
    "A matrix-vector product returned NaN or infinity: the loss has no finite curvature here. "
    "Check the loss on this batch for overflow, log(0) or sqrt(0)."
)


@dataclass(frozen=True, slots=True)
class _Ritz:
    """Eigen-decomposition of T, and the wanted pairs' residuals as the Krylov relation has them."""

    relation: Float[Tensor, "j1 j"]
    values: Float[Tensor, " j"]  # rising
    weights: Float[Tensor, "j j"]
    wanted: Tensor  # (k,) indices: top end first, each end in falling order
    within: Float[Tensor, " k"]  # norm of the residual's part inside the basis: asymmetry, noise
    beyond: Float[Tensor, " k"]  # norm of its part along the next direction: what a step reduces

    @property
    def wanted_values(self) -> Float[Tensor, " k"]:
        return self.values[self.wanted]


class Lanczos:
    """One run for the ``top`` largest and ``bottom`` smallest pairs, from the basis' first row."""

    def __init__(
        self,
        basis: KrylovBasis,
        *,
        top: int,
        bottom: int,
        tol: float,
        seek_multiples: bool = False,
    ) -> None:
        self.op, self.basis, self.top, self.bottom, self.tol = basis.op, basis, top, bottom, tol
        self.seek_multiples = seek_multiples
        self.pairs = top + bottom
        self.num_matvecs = 0
        self.scale = 0.0  # ‖T‖, the best estimate of ‖A‖
        self._inspected_at = 0
        self._random_at: int | None = None  # where a random direction was inserted last
        self._values_then: Tensor | None = None  # the wanted values at that time

    def solve(self, max_matvecs: int) -> RitzPairs:
        """Iterate until both ends converge or the budget is spent.

        Returns:
            The wanted pairs.
        """
        cheap_checks = self.op.device.type == "cpu" and self.op.n >= TINY
        while True:
            self.basis.step()
            self.num_matvecs += 1
            j = self.basis.j
            every = 1 if cheap_checks and j >= self.pairs else CHECK_EVERY
            spent = self.num_matvecs >= max_matvecs and j >= self.pairs
            if not (spent or j == self.basis.size or j - self._inspected_at >= every):
                continue
            ritz = self._inspect()
            j = self.basis.j
            done = self._converged(ritz)
            spent = spent and j >= self.pairs
            if spent or j == self.op.n or (done.all() and self._settled(ritz)):
                return self._measure(ritz)
            if j == self.basis.size:
                self._restart(ritz, self._worth_keeping(done))

    def _inspect(self) -> _Ritz:
        """Bring H to the host, cut the basis at a breakdown, and solve the small problem."""
        relation = self.basis.relation()
        j = self.basis.closed_at(relation, since=self._inspected_at)
        if j is not None:
            self._random_at = j
            self.basis.cut(j)
            if j < self.op.n:
                self.basis.insert_direction()
            relation = relation[: j + 1, :j]
            relation[j] = 0.0
        if not relation.isfinite().all():
            raise NonfiniteError(NONFINITE)
        self._inspected_at = self.basis.j
        values, weights = torch.linalg.eigh(relation[:-1], UPLO="U")
        self.scale = float(values.abs().max())
        wanted = self._wanted()
        chosen = weights[:, wanted]
        within = relation[:-1] @ chosen - values[wanted] * chosen
        beyond = relation[-1] @ chosen
        return _Ritz(relation, values, weights, wanted, within.norm(dim=0), beyond.abs())

    def _wanted(self) -> Tensor:
        j = self.basis.j
        if j < self.pairs:
            return torch.zeros(0, dtype=torch.long)
        top = torch.arange(j - 1, j - 1 - self.top, -1)
        return torch.cat([top, torch.arange(self.bottom - 1, -1, -1)])

    def _converged(self, ritz: _Ritz) -> Tensor:
        """Which wanted pairs meet their tolerance, or cannot come nearer, (k,) bool."""
        if not len(ritz.wanted):
            return torch.zeros(self.pairs, dtype=torch.bool)
        margin = MARGIN if self.basis.relation_holds else LOOSE_MARGIN
        limits = margin * self._limits(ritz.wanted_values)
        left = (limits.square() - ritz.within.square()).clamp(min=(0.1 * limits).square())
        return ritz.beyond <= left.sqrt()

    def _limits(self, values: Tensor) -> Tensor:
        floor = precision_floor(self.scale, self.op.dtype)
        return tolerances(values, top=self.top, tol=self.tol).clamp(min=floor)

    def _settled(self, ritz: _Ritz) -> bool:
        """Decide whether the converged values are all there; if in doubt, go on looking.

        Without a breakdown or a zero eigenvalue they count as such, unless multiples are sought.
        Otherwise a random direction must have left them unchanged; when it has not, the next one is
        inserted here.

        Returns:
            True to stop.
        """
        j, values = self.basis.j, ritz.wanted_values
        singular = bool((values.abs() <= precision_floor(self.scale, self.op.dtype)).any())
        if self._random_at is None and not singular and not self.seek_multiples:
            return True
        at_breakdown = j == self._random_at
        if self._random_at is not None and not at_breakdown and j - self._random_at < EXPLORE:
            return False
        before, self._values_then = self._values_then, values
        if before is not None and bool(((values - before).abs() <= self._limits(values)).all()):
            return True
        if not at_breakdown:
            self._restart(ritz, ritz.wanted)
            self.basis.relation_holds = False  # the direction that came next is given up
            self.basis.insert_direction()
            self._random_at = self.basis.j
        return False

    def _worth_keeping(self, done: Tensor) -> Tensor:
        """Indices of the wanted pairs and of a quarter of what else fits, at the ends at work."""
        j, spare = self.basis.j, (self.basis.size - self.pairs) // 4
        top_done, bottom_done = bool(done[: self.top].all()), bool(done[self.top :].all())
        spare_top = 0 if top_done else spare if bottom_done else spare // 2
        top = torch.arange(j - self.top - spare_top, j)
        return torch.cat([torch.arange(self.bottom + spare - spare_top), top])

    def _restart(self, ritz: _Ritz, index: Tensor) -> None:
        self.basis.restart(ritz.weights[:, index], ritz.relation)
        self._inspected_at = self.basis.j
        if self._random_at is not None:
            self._random_at = self.basis.j

    def _measure(self, ritz: _Ritz) -> RitzPairs:
        """Form the wanted pairs, with certified residuals or else explicit ones."""
        chosen = ritz.weights[:, ritz.wanted]
        vectors = self.basis.combine(chosen)
        values = ritz.wanted_values
        residuals = torch.hypot(ritz.within, ritz.beyond)
        error = 0.0
        certified = False
        if self.basis.relation_holds and self.pairs > 1:
            error = self._relation_error(vectors, chosen, ritz.relation)
            certified = error <= CERTIFIED * float(self._limits(values).min())
        if certified:
            residuals = torch.hypot(residuals, torch.tensor(error, dtype=residuals.dtype))
        else:
            error = 0.0
            values, residuals = measure_explicitly(self.op, vectors)
            self.num_matvecs += self.pairs
        return ritz_pairs(
            values,
            vectors,
            residuals,
            top=self.top,
            tol=self.tol,
            scale=self.scale,
            num_matvecs=self.num_matvecs,
            residual_error=error,
        )

    def _relation_error(
        self, vectors: Float[Tensor, "k n"], chosen: Tensor, relation: Tensor
    ) -> float:
        """Root of Σ‖eᵢ‖², the errors of the recurrence's residuals, from one matvec."""
        generator = torch.Generator().manual_seed(self.num_matvecs)
        signs = 2.0 * torch.randint(0, 2, (self.pairs,), generator=generator).double() - 1.0
        mixed = signs.to(vectors) @ vectors
        self.num_matvecs += 1
        return self.basis.relation_error(self.op.matvec(mixed), chosen @ signs, relation)
