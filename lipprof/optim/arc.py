"""ARC: adaptive cubic regularisation (Cartis, Gould & Toint 2011, algorithm 2.1).

    s = argmin g·s + ½ sᵀHs + σ/3 ‖s‖³        over a Krylov space of g (``arc_subproblem``)
    ρ = [f(θ) − f(θ + s)] / −m(s)

ρ ≥ η₁: θ ← θ + s.  ρ < η₁: σ ← γ₁ σ and again.  ρ > η₂: σ ← γ₂ σ.  One σ for all directions, where
EigenARC has an L for each (L = 2σ in the paper's cubic models); the rule is theirs in common.

Departs from the textbook in three ways:
1. A refused step is followed by the next within the same ``step``, on the same g, H and Krylov
   basis: it costs a forward.
2. Where the descent is lost in the rounding of the loss, near a minimum, the step is taken and σ
   stays (Conn, Gould & Toint 2000, section 17.4.2).
3. σ is not lowered where its term of m is beyond the rounding of the descent already.

Cost of a step: a gradient with its graph, up to ``max_matvecs`` products (2.2 gradients each), a
forward a trial; memory for the graph and ``max_matvecs`` + 1 vectors.
"""

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from lipprof.curvature import (
    HessianOperator,
    ParameterView,
    RandomState,
    displaced,
    gradient_graph,
)
from lipprof.errors import ConfigError
from lipprof.linalg.inner import norm
from lipprof.lipschitz.acceptance import LARGEST, SMALLEST, AcceptanceRule, Verdict
from lipprof.optim.arc_subproblem import CubicSubproblem

LossClosure = Callable[[], Tensor]

VANISHING = 1e-150  # ‖g‖ whose square is no longer a number


class ArcStatus(enum.Enum):
    """How a step ended."""

    ACCEPTED = "the loss fell as promised"
    UNRESOLVED = "taken, though its descent is lost in the rounding of the loss: near a minimum"
    GAVE_UP = "refused, as were all trials of this step: θ stays; the next goes on with this σ"
    STATIONARY = "the gradient is zero: θ stays"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArcStep:
    """What one call of ``step`` did."""

    status: ArcStatus
    ratio: float = math.nan  # ρ of the last trial
    trials: int = 0  # forwards besides that of the gradient
    num_matvecs: int = 0
    converged: bool = True  # whether the last sub-problem met its tolerance


class ARC(Optimizer):
    """Adaptive cubic regularisation over one group of parameters.

    ``step`` needs a closure that returns the loss on one fixed batch and does *not* call backward
    (it is evaluated again, as by LBFGS, but differentiated here, and twice)::

        optimizer.step(lambda: F.cross_entropy(model(inputs), labels))

    Every evaluation within a step draws the same random numbers, so that dropout has the same
    masks.  Buffers that a forward updates (BatchNorm in train mode) are updated by each.  The
    forward has to use operators that have a second derivative: attention is told to; for recurrent
    layers on cuDNN and compiled modules that is up to the closure.

    ``.grad`` is neither read nor written.  σ is kept in the parameter group, hence in
    ``state_dict``.  The group's ``lr`` is there for schedulers, which look for one, and has no
    influence: σ is what controls the length of a step.

    Args:
        params: parameters or named parameters, or one group; all on one device.
        sigma: σ₀ > 0, loss/param³.
        eta1: η₁, below it a step is refused.
        eta2: η₂, above it σ is lowered.
        gamma1: γ₁ > 1, the factor to raise σ by.
        gamma2: γ₂ < 1, the factor to lower it by.
        tol: of the sub-problem, ‖∇m(s)‖ relative to ‖g‖.
        max_matvecs: products a step, the dimension of the Krylov space.
        max_failures: refused trials before a step is given up.  Defaults: the paper's App. J.

    Raises:
        ConfigError: a value out of range, or several groups.
    """

    def __init__(
        self,
        params: Any,
        sigma: float = 1.0,
        *,
        eta1: float = 0.1,
        eta2: float = 0.9,
        gamma1: float = 2.0,
        gamma2: float = 0.5,
        tol: float = 1e-6,
        max_matvecs: int = 50,
        max_failures: int = 11,
    ) -> None:
        if not 0 < sigma < math.inf or not tol > 0:
            raise ConfigError(f"Got {sigma=}, {tol=}: expected both positive.")
        if not max_matvecs >= 1 or not max_failures >= 1:
            raise ConfigError(f"Got {max_matvecs=}, {max_failures=}: expected at least 1.")
        self.rule = AcceptanceRule(eta1=eta1, eta2=eta2, gamma1=gamma1, gamma2=gamma2)
        self.tol = tol
        self.max_matvecs = max_matvecs
        self.max_failures = max_failures
        self.last_step: ArcStep | None = None
        super().__init__(params, {"lr": 1.0, "sigma": sigma})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the one group.

        Args:
            param_group: the group.

        Raises:
            ConfigError: there is one already.
        """
        if self.param_groups:
            raise ConfigError(
                "ARC has one model of the loss and one sigma for all its parameters: give it one "
                "group."
            )
        super().add_param_group(param_group)

    def step(self, closure: LossClosure) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step; ``last_step`` tells how it went.

        Args:
            closure: returns the loss of one fixed batch, with its graph.

        Returns:
            The loss before the step, detached.

        Raises:
            NotDifferentiableError: the loss is no scalar, depends on none of the parameters, or
                passes a function without second derivative.
            NonfiniteError: the loss, its gradient or a product is NaN or infinite.
        """  # noqa: DOC502 - raised by the derivatives
        view = self._view()
        random = RandomState.capture()

        def loss_at(point: Tensor) -> float:
            random.restore()
            with displaced(view, point):
                return float(closure().detach())

        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            loss = closure()
            hessian = HessianOperator(view, [gradient_graph(loss, view)])
            gradient = hessian.gradient()
            if float(norm(gradient)) <= VANISHING:
                self.last_step = ArcStep(status=ArcStatus.STATIONARY)
                return loss.detach()
            problem = CubicSubproblem(hessian, gradient, tol=self.tol, max_matvecs=self.max_matvecs)
            self.last_step = self._search(problem, view, loss_at, loss.detach())
        return loss.detach()

    def _search(
        self,
        problem: CubicSubproblem,
        view: ParameterView,
        loss_at: Callable[[Tensor], float],
        loss: Tensor,
    ) -> ArcStep:
        """Try steps under rising σ until one is accepted, and take that."""
        (group,) = self.param_groups
        rounding = max(torch.finfo(tensor.dtype).eps for tensor in (loss, *view.parameters))
        theta = view.snapshot()
        trials = 0
        while True:
            cubic = problem.minimise(group["sigma"])
            point = theta + cubic.step
            ratio, verdict = self.rule.judge(
                loss=float(loss), trial=loss_at(point), predicted=cubic.descent, rounding=rounding
            )
            trials += 1
            if cubic.regularisation > rounding * cubic.descent or verdict is Verdict.UNSUCCESSFUL:
                sigma = group["sigma"] * self.rule.factor(verdict)
                group["sigma"] = min(max(sigma, SMALLEST), LARGEST)
            if verdict is not Verdict.UNSUCCESSFUL or trials == self.max_failures:
                break
        if verdict is not Verdict.UNSUCCESSFUL:
            with torch.no_grad():
                for parameter, part in zip(view.parameters, view.split(point), strict=True):
                    parameter.copy_(part)
        return ArcStep(
            status=_STATUS[verdict],
            ratio=ratio,
            trials=trials,
            num_matvecs=problem.num_matvecs,
            converged=cubic.converged,
        )

    def _view(self) -> ParameterView:
        (group,) = self.param_groups
        params = group["params"]
        names = group.get("param_names", [f"param{i}" for i in range(len(params))])
        return ParameterView(
            (name, p) for name, p in zip(names, params, strict=True) if p.requires_grad
        )


_STATUS = {
    Verdict.SUCCESSFUL: ArcStatus.ACCEPTED,
    Verdict.VERY_SUCCESSFUL: ArcStatus.ACCEPTED,
    Verdict.UNRESOLVED: ArcStatus.UNRESOLVED,
    Verdict.UNSUCCESSFUL: ArcStatus.GAVE_UP,
}
