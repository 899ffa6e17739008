"""The Hessian as the user's live optimizer sees it, and how far training is from the edge.

At a frozen preconditioner an optimizer steps θ ← aθ − lr F(Hθ + dθ) / denominator, entrywise but
for the momentum filter F, with a = 1 − lr·wd where weight decay is decoupled, and d = wd where it
is part of the gradient (see ``step_rules``).  Over a positive H such a recurrence loses stability
by an oscillation of period two and in no other way, whatever the mix of learning rates, momenta and
decays over parameter groups.  For on the unit circle, z = e^{iφ}, it reads
denominator (z − a)/F(z) θ = −lr (H + d) θ; (z − a)/F(z) has an imaginary part of the sign of sin φ
in every entry, H + d has none, and z = −1 is left:

    S^½ (H + d) S^½ u = u,        S = lr F(−1) / ((1 + a) denominator).

So the top eigenvalue of this symmetric operator is the *ratio to the edge of stability*; 1 is the
edge.  For SGD it is λ_max(H) / (2/lr); for Adam λ_max(P^-½ H P^-½) / ((2 + 2β₁) / ((1 − β₁) lr)),
the threshold of Cohen et al. (2022).

The denominator is that of the last step; given a gradient, that of the next one, exactly as the
optimizer would compute it.  The difference matters where an entry had no gradient so far, as the
rows of an embedding: its denominator is still epsilon.  Clipping of gradients, which shortens
steps, is not seen.  The optimizer is only read.  A product costs one of H.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from lipprof.curvature.blocks import restricted
from lipprof.curvature.operators import ParameterOperator
from lipprof.curvature.parameters import ParameterView
from lipprof.curvature.step_rules import (
    Part,
    StepRule,
    TensorState,
    known_optimizers,
    stepped_groups,
    views_of,
)
from lipprof.errors import ConfigError, ShapeError
from lipprof.linalg import eigenpairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Preconditioner:
    """S and d of an optimizer's step over the parameters that have them, and what has not."""

    included: tuple[int, ...]  # positions in the view
    scale: Float[Tensor, " m"]  # S, param²/loss
    decay: Float[Tensor, " m"]  # d, loss/param²
    learning_rate: float | None  # None where the groups differ
    momentum_limit: float | None  # of lr λ(P⁻¹H): 2 without momentum; None where the groups differ
    excluded: dict[str, str]  # parameter: why it has no diagonal preconditioner


@dataclass(frozen=True, slots=True)
class _Step:
    """How one tensor is stepped."""

    denominator: Tensor
    learning_rate: float
    limit: float  # (1 + a) / F(−1), of lr λ(P⁻¹H)
    decay: float


def read_preconditioner(
    optimizer: Optimizer, view: ParameterView, gradient: Float[Tensor, " n"] | None = None
) -> Preconditioner:
    """Read the preconditioner of an optimizer's steps from its state.

    Args:
        optimizer: one of ``known_optimizers``, live; it is not changed.
        view: the parameters.
        gradient: of the loss that the optimizer will step on next.  With it the preconditioner is
            that of the next step, without it that of the last one.

    Returns:
        The preconditioner; parameters without one are listed with the reason.

    Raises:
        ConfigError: no parameter has one.
        ShapeError: the gradient has not n entries.
    """
    if gradient is not None and gradient.shape != (view.n,):
        raise ShapeError(f"Expected a gradient of n={view.n} entries, got {tuple(gradient.shape)}.")
    parts = [None] * len(view.names) if gradient is None else gradient.split(view.numel)
    gradient_of = {
        p: part if part is None else part.view(p.shape)
        for p, part in zip(view.parameters, parts, strict=True)
    }
    found: dict[Tensor, list[tuple[Part, _Step]]] = {}
    refused: dict[Tensor, str] = {}
    for parameter, part, step in _steps(optimizer, gradient_of, view.dtype):
        if isinstance(step, _Step):
            found.setdefault(parameter, []).append((part, step))
        else:
            refused[parameter] = step
    steps: dict[int, list[tuple[Part, _Step]]] = {}
    excluded: dict[str, str] = {}
    for i, (name, parameter) in enumerate(zip(view.names, view.parameters, strict=True)):
        if parameter in refused or parameter not in found:
            reason = f"{type(optimizer).__name__} does not step it"
            excluded[name] = refused.get(parameter, reason)
        else:
            steps[i] = found[parameter]
    if not steps:
        raise ConfigError(
            f"No parameter has a diagonal preconditioner: {'; '.join(set(excluded.values()))}. "
            f"Known optimizers: {', '.join(known_optimizers())}."
        )
    return _joined(steps, excluded, view)


def _steps(
    optimizer: Optimizer, gradient_of: dict[Tensor, Tensor | None], dtype: torch.dtype
) -> Iterator[tuple[Tensor, Part, _Step | str]]:
    """The steps of every parameter, part by part."""
    views = views_of(optimizer)
    for stepper, group, rule in stepped_groups(optimizer):
        for tensor in group["params"]:
            parameter, part = views.get(tensor, (tensor, _whole))
            if parameter not in gradient_of:
                continue
            gradient = gradient_of[parameter]
            if rule is None:
                reason = f"there is no rule for the steps of {type(stepper).__name__}"
                yield parameter, part, reason
            elif group.get("maximize"):
                reason = "the optimizer maximizes; profile the negative loss, minimized"
                yield parameter, part, reason
            else:
                state = TensorState(
                    parameter=tensor.detach(),
                    group=group,
                    state=stepper.state.get(tensor, {}),
                    gradient=None if gradient is None else part(gradient),
                    dtype=dtype,
                )
                yield parameter, part, _step(rule, state)


def _whole(tensor: Tensor) -> Tensor:
    return tensor


def _step(rule: StepRule, s: TensorState) -> _Step | str:
    rate, decay = s.number("lr"), float(s.group.get("weight_decay", 0))
    shrinking = rate * decay if rule.decoupled(s.group) else 0.0
    coupled = 0.0 if rule.decoupled(s.group) else decay
    if shrinking >= 2:
        raise ConfigError(
            f"lr * weight_decay = {shrinking:g}: from 2 on the decay alone makes the parameters "
            "diverge, whatever the loss. Lower either."
        )
    if s.gradient is not None:
        gradient = s.gradient.to(s.dtype) + coupled * s.parameter.to(s.dtype)
        s = replace(s, gradient=gradient)
    elif rule.needs_state and not s.has_stepped:
        return "the optimizer has no state of it yet: measure after a step, or give the gradient"
    limit = (2 - shrinking) / rule.oscillation_gain(s)
    return _Step(rule.denominator(s), rate, limit, coupled)


def _joined(
    steps: Mapping[int, Sequence[tuple[Part, _Step]]], excluded: dict[str, str], view: ParameterView
) -> Preconditioner:
    rates = {step.learning_rate for parts in steps.values() for _, step in parts}
    limits = {step.limit for parts in steps.values() for _, step in parts}
    scales, decays = [], []
    for i, parts in steps.items():
        scale, decay = (torch.empty_like(view.parameters[i], dtype=view.dtype) for _ in range(2))
        for part, step in parts:
            part(scale).copy_(step.learning_rate / (step.limit * step.denominator))
            part(decay).fill_(step.decay)
        scales.append(scale.flatten())
        decays.append(decay.flatten())
    return Preconditioner(
        included=tuple(steps),
        scale=torch.cat(scales),
        decay=torch.cat(decays),
        learning_rate=rates.pop() if len(rates) == 1 else None,
        momentum_limit=limits.pop() if len(limits) == 1 else None,
        excluded=excluded,
    )


class PreconditionedOperator:
    """S^½ (A + d) S^½ for A the Hessian, or another operator over parameters in its place.

    Its ``view`` has only the parameters that the preconditioner includes.
    """

    def __init__(self, operator: ParameterOperator, preconditioner: Preconditioner) -> None:
        if preconditioner.excluded:
            operator = restricted(operator, preconditioner.included)
        self.view = operator.view
        self.n, self.dtype, self.device = operator.n, operator.dtype, operator.device
        self._operator = operator
        self._root = preconditioner.scale.sqrt().to(self.dtype)
        self._decay = preconditioner.decay.to(self.dtype)

    def matvec(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """One product, at the price of one with A."""
        scaled = self._root * vector
        return self._root * (self._operator.matvec(scaled) + self._decay * scaled)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stability:
    """How far an optimizer is from the edge of stability."""

    edge_ratio: float  # 1 is the edge; over it, the top direction oscillates and grows
    residual: float  # of edge_ratio, as an eigenvalue
    converged: bool
    num_matvecs: int
    learning_rate: float | None  # None where parameter groups differ
    momentum_limit: float | None  # of lr λ(P⁻¹H): 2 without momentum; None where groups differ
    excluded: dict[str, str]  # parameter: why it is left out

    @property
    def sharpness(self) -> float | None:
        """λ_max(P^-½ H P^-½), to compare with ``sharpness_limit``; None without a single one."""
        limit = self.sharpness_limit
        return None if limit is None else self.edge_ratio * limit

    @property
    def sharpness_limit(self) -> float | None:
        """``momentum_limit`` / lr: 2/lr without momentum."""
        if not self.learning_rate or self.momentum_limit is None:
            return None
        return self.momentum_limit / self.learning_rate


def stability(
    operator: ParameterOperator,
    optimizer: Optimizer,
    *,
    gradient: Float[Tensor, " n"] | None = None,
    tol: float = 1e-3,
    max_matvecs: int = 300,
    basis_size: int | None = None,
    basis_device: torch.device | str | None = None,
    seed: int = 0,
) -> Stability:
    """Measure how far an optimizer is from the edge of stability.

    Args:
        operator: the Hessian; the Gauss–Newton matrix or a block would do too.
        optimizer: that of the training loop; it is not changed.
        gradient: see ``read_preconditioner``.
        tol: relative residual.
        max_matvecs: limit of products.
        basis_size: Lanczos vectors kept; see ``eigenpairs``.
        basis_device: where they are kept.
        seed: of the start vector.

    Returns:
        The ratio to the edge, with what it is made of.

    Raises:
        ConfigError: no parameter has a diagonal preconditioner.
    """
    preconditioner = read_preconditioner(optimizer, operator.view, gradient)
    pairs = eigenpairs(
        PreconditionedOperator(operator, preconditioner),
        top=1,
        bottom=0,
        tol=tol,
        max_matvecs=max_matvecs,
        basis_size=basis_size,
        basis_device=basis_device,
        seed=seed,
    )
    return Stability(
        edge_ratio=float(pairs.values[0]),
        residual=float(pairs.residuals[0]),
        converged=bool(pairs.converged[0]),
        num_matvecs=pairs.num_matvecs,
        learning_rate=preconditioner.learning_rate,
        momentum_limit=preconditioner.momentum_limit,
        excluded=preconditioner.excluded,
    )
