"""EigenARC by rank, as in the paper: L⁺ belongs to whatever the largest eigenvalue is by now.

The profiler's EigenARC follows eigenvectors: a pair without a predecessor begins with L_0 anew.
By rank L is handed on from one vector to the next, however little they have in common.  Which of
the two is taken turns out to decide the result (README).
"""

import torch
from torch import Tensor

from examples.lipschitz.scenarios import Loss
from lipprof import Profiler
from lipprof.curvature import DisplacedLoss, ProbeLoss
from lipprof.lipschitz import EigenARC, Eigenspaces


class RankedEigenARC:
    """Alg. 3 on the pairs that a profiler lends: its optimizer's ``observe_eigenspaces``.

    Attributes:
        found: L⁺ and L⁻ by iteration, where both pairs converged.
    """

    def __init__(self, prof: Profiler, loss: Loss) -> None:
        self.found: dict[int, list[float]] = {}
        self._prof, self._loss = prof, loss
        self._displaced = DisplacedLoss(ProbeLoss(prof.model, loss), prof.view)
        self._eigenarc = EigenARC()

    def __call__(self, lent: Eigenspaces) -> None:
        """Adapt L, before the parameters move."""
        if len(lent.values) < 2:
            return
        slope = (lent.vectors @ self._gradient()).double().cpu()
        oriented = lent.vectors * torch.where(slope > 0, -1, 1).to(lent.vectors)[:, None]  # eq. 1

        def along(x: Tensor) -> float:
            return self._displaced(x.to(oriented) @ oriented)

        result = self._eigenarc.update(
            along,
            loss=along(torch.zeros_like(slope)),
            slope=slope.abs(),
            curvature=lent.values,
            rounding=self._displaced.rounding,
        )
        self.found[self._prof.iteration] = result.lipschitz.tolist()

    def _gradient(self) -> Tensor:
        view = self._prof.view
        return view.flatten(torch.autograd.grad(self._loss(self._prof.model), view.parameters))
