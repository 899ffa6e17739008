"""How lipprof's own optimizers step, for the preconditioned Hessian.

Sophia's step is −η clip(m / max(ρh, ε), 1) = −η m / max(ρh, ε, |m|).  So the denominator is
max(ρh, ε, |m|): an entry that is clipped now counts as one of sign momentum.  In oscillations small
enough to clip nothing, the ratio to the edge is that of Sophia's own recurrence; where such a ratio
is over 1 they grow until the clip bounds them to about η.

AMOS: every tensor by the rule of the optimizer that steps it now, with the learning rates that its
next step will use; tensors that an arm keeps warm count for the other arm.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer

from lipprof.curvature.step_rules import (
    Group,
    StepRule,
    TensorState,
    averaging_gain,
    register_composite,
    register_step_rule,
)
from lipprof.optim.amos import AMOS
from lipprof.optim.sophia import Sophia


def _sophia(s: TensorState) -> Tensor:
    momentum = s.average("exp_avg", s.beta(0), power=1)
    denominator = (s.number("rho") * s.stored("hessian")).clamp(min=s.number("eps"))
    return torch.maximum(denominator, momentum.abs())


def _active_groups(amos: AMOS) -> Iterator[tuple[Optimizer, Group]]:
    first, second = amos._arms
    for i, face in enumerate(amos.param_groups):
        yield first.optimizer, {**first.groups[i], **face, "params": first.groups[i]["params"]}
        scale = face["lr"] / face["base_lr"] if face["base_lr"] else 1.0
        yield second.optimizer, {**second.groups[i], "lr": face["second_base_lr"] * scale}


register_step_rule(Sophia, StepRule(_sophia, averaging_gain, decoupled=lambda _: True))
register_composite(AMOS, _active_groups, lambda amos: amos._assignment.views())
