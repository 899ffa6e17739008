"""How optimizers turn gradients into steps, read from their state: θ ← θ − lr F(g) / denominator.

Everything is entrywise, except the momentum filter F, which acts in time.  Of it the stability of
training needs a single number, the *oscillation gain* F(−1): the gain for gradients that change
sign at every step, as they do at the edge of stability.  With m ← βm + (1 − β)g that is
(1 − β)/(1 + β), with heavy-ball momentum 1/(1 + β), with Nesterov's (1 + 2β)/(1 + β).  The
transient of the first moment's bias correction, gone after 1/(1 − β) steps, is not part of it.

The denominators repeat the arithmetic of ``torch.optim``, with epsilon and bias correction where
they are there.  Rules are found by exact type: a subclass may step in another way.
``register_step_rule`` takes rules for other optimizers, ``register_composite`` optimizers that are
made of others.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

Group = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TensorState:
    """What an optimizer knows about one tensor, and perhaps the next gradient that it will see."""

    parameter: Tensor
    group: Group
    state: Mapping[str, Any]  # empty before the first step
    gradient: Tensor | None  # weight decay included where it is part of the gradient
    dtype: torch.dtype  # to compute in

    @property
    def step(self) -> float:
        """Steps done; with a gradient, the one that it leads to included."""
        return float(self.state.get("step", 0)) + (self.gradient is not None)

    @property
    def has_stepped(self) -> bool:
        """Whether the state is more than what a constructor may have put there."""
        return bool(self.state) and float(self.state.get("step", 1)) > 0

    def number(self, key: str) -> float:
        """A hyperparameter of the group."""
        return float(self.group[key])

    def beta(self, index: int) -> float:
        """β₁ or β₂."""
        return float(self.group["betas"][index])

    def stored(self, key: str) -> Tensor:
        """A tensor of the state; zeros before the first step."""
        if key in self.state:
            return self.state[key].to(self.dtype)
        return torch.zeros_like(self.parameter, dtype=self.dtype)

    def average(self, key: str, beta: float, power: int = 2) -> Tensor:
        """A moving average of gᵖᵒʷᵉʳ, advanced by the gradient where there is one."""
        average = self.stored(key)
        if self.gradient is None:
            return average
        return average * beta + self.gradient**power * (1 - beta)


@dataclass(frozen=True, slots=True)
class StepRule:
    """One kind of optimizer."""

    denominator: Callable[[TensorState], Tensor]
    oscillation_gain: Callable[[TensorState], float]
    decoupled: Callable[[Group], bool] = lambda _: False  # weight decay beside the gradient
    needs_state: bool = True  # no denominator before the first step, unless the gradient is given


def _adam(s: TensorState) -> Tensor:
    second = s.average("exp_avg_sq", s.beta(1))
    if s.group["amsgrad"]:
        second = torch.maximum(s.stored("max_exp_avg_sq"), second)
    return second.sqrt() / (1 - s.beta(1) ** s.step) ** 0.5 + s.number("eps")


def _nadam(s: TensorState) -> Tensor:
    second = s.average("exp_avg_sq", s.beta(1))
    return (second / (1 - s.beta(1) ** s.step)).sqrt() + s.number("eps")


def _radam(s: TensorState) -> Tensor:
    beta, step = s.beta(1), s.step
    correction = 1 - beta**step
    limit = 2 / (1 - beta) - 1
    length = limit - 2 * step * beta**step / correction
    if length <= 5:
        return torch.ones_like(s.parameter, dtype=s.dtype)
    rectified = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
    return (s.average("exp_avg_sq", beta).sqrt() + s.number("eps")) / (
        correction * rectified
    ) ** 0.5


def _adamax(s: TensorState) -> Tensor:
    norm = s.stored("exp_inf")
    if s.gradient is None:
        return norm
    return torch.maximum(norm * s.beta(1), s.gradient.abs() + s.number("eps"))


def _rmsprop(s: TensorState) -> Tensor:
    variance = s.average("square_avg", s.number("alpha"))
    if s.group["centered"]:
        variance = (variance - s.average("grad_avg", s.number("alpha"), power=1) ** 2).clamp(min=0)
    return variance.sqrt() + s.number("eps")


def _adagrad(s: TensorState) -> Tensor:
    total = s.stored("sum")
    if s.gradient is not None:
        total = total + s.gradient**2
    slowdown = 1 + (s.step - 1) * s.number("lr_decay")
    return (total.sqrt() + s.number("eps")) * slowdown


def _sgd(s: TensorState) -> Tensor:
    return torch.ones_like(s.parameter, dtype=s.dtype)


def averaging_gain(s: TensorState) -> float:
    """Of m ← β₁m + (1 − β₁)g."""
    return (1 - s.beta(0)) / (1 + s.beta(0))


def _nesterov_averaging_gain(s: TensorState) -> float:
    now, following = (
        s.beta(0) * (1 - 0.5 * 0.96 ** (step * s.number("momentum_decay")))
        for step in (s.step, s.step + 1)
    )
    return (1 - now) + following * averaging_gain(s)


def _summing_gain(s: TensorState) -> float:
    momentum = s.number("momentum")
    gain = (1 - float(s.group.get("dampening", 0))) / (1 + momentum)
    if momentum == 0:
        return 1.0
    return 1 + momentum * gain if s.group.get("nesterov") else gain


def _marked_decoupled(group: Group) -> bool:
    return bool(group.get("decoupled_weight_decay", False))


_RULES: dict[type[Optimizer], StepRule] = {
    optim.Adam: StepRule(_adam, averaging_gain, _marked_decoupled),
    optim.AdamW: StepRule(_adam, averaging_gain, lambda _: True),
    optim.NAdam: StepRule(_nadam, _nesterov_averaging_gain, _marked_decoupled),
    optim.RAdam: StepRule(_radam, averaging_gain, _marked_decoupled),
    optim.Adamax: StepRule(_adamax, averaging_gain),
    optim.RMSprop: StepRule(_rmsprop, _summing_gain),
    optim.Adagrad: StepRule(_adagrad, lambda _: 1.0),
    optim.SGD: StepRule(_sgd, _summing_gain, needs_state=False),
}

ActiveGroups = Callable[[Any], Iterable[tuple[Optimizer, Group]]]
_COMPOSITES: dict[type[Optimizer], ActiveGroups] = {}

Part = Callable[[Tensor], Tensor]
"""From a tensor of a parameter's shape to a view of some of its entries."""

Views = Callable[[Any], Mapping[Tensor, tuple[Tensor, Part]]]
_VIEWS: dict[type[Optimizer], Views] = {}


def register_step_rule(kind: type[Optimizer], rule: StepRule) -> None:
    """Say how an optimizer steps; exactly this type, not its subclasses."""
    _RULES[kind] = rule


def register_composite(
    kind: type[Optimizer], active_groups: ActiveGroups, views: Views = lambda _: {}
) -> None:
    """Say what a composite optimizer is made of.

    Args:
        kind: its type.
        active_groups: gives the optimizers, and the groups that each of them steps.
        views: gives, for every tensor in them that is a view of a parameter, which part of which.
    """
    _COMPOSITES[kind], _VIEWS[kind] = active_groups, views


def views_of(optimizer: Optimizer) -> Mapping[Tensor, tuple[Tensor, Part]]:
    """What an optimizer steps that is a part of a parameter, and which part of which."""
    views = _VIEWS.get(type(optimizer))
    return {} if views is None else views(optimizer)


def known_optimizers() -> list[str]:
    """Names of the optimizers that there are rules for."""
    return sorted(kind.__name__ for kind in [*_RULES, *_COMPOSITES])


def stepped_groups(optimizer: Optimizer) -> Iterator[tuple[Optimizer, Group, StepRule | None]]:
    """Go through what an optimizer steps now.

    Args:
        optimizer: any.

    Yields:
        The optimizer that has the state, one of its groups, and its rule if there is one.
    """
    composite = _COMPOSITES.get(type(optimizer))
    if composite is None:
        for group in optimizer.param_groups:
            yield optimizer, group, _RULES.get(type(optimizer))
        return
    for part, group in composite(optimizer):
        yield part, group, _RULES.get(type(part))
