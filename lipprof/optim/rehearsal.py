"""Which step each optimizer of AMOS would take next, for what it holds and what it does not.

Found out on copies: another optimizer from the same factory, over copies of the tensors and their
gradients, with the present hyperparameters and a copy of the state.  A tensor that is on the other
side starts with the state that it would have after a switch (``handover``).  Parameters, gradients,
state and random numbers stay as they are.

What an optimizer keeps outside ``state`` and ``param_groups`` begins as its constructor leaves it.
Memory: the parameters, their gradients and the state of one optimizer, in passing, and both steps.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lipprof.advice import Choice
from lipprof.curvature.guards import RandomState
from lipprof.optim.amos import AMOS
from lipprof.optim.assignment import Assignment
from lipprof.optim.handles import Handle
from lipprof.optim.handover import arriving_state

Step = dict[Tensor, Tensor]
"""Updates by parameter, of its shape; zero where there is no gradient."""


@torch.no_grad()
def rehearse(amos: AMOS) -> tuple[Step, Step]:
    """Find the step that AMOS would take with all that may switch on the one or the other side.

    To be called when gradients are what the step is going to see.

    Args:
        amos: the optimizer.

    Returns:
        With everything on the first side, and with all that may leave it on the second.

    Raises:
        ConfigError: a gradient is sparse and belongs to a tensor that is cut.
    """  # noqa: DOC502 - raised by the handles
    sides, random = amos._assignment, RandomState.capture()
    amos.push_hyperparameters()
    try:
        with sides.gradients_lent():
            first = sides.first.rehearse({})
            second = sides.second.rehearse(_arriving(sides))
    finally:
        random.restore()
    handles = list(sides.handles)
    return _by_parameter(handles, first), _by_parameter(handles, first | second)


def _arriving(sides: Assignment) -> dict[Tensor, dict[str, Any]]:
    """State with which tensors that are on the first side would enter the second."""
    if not sides.warm:
        return {}
    first, second = sides.first, sides.second
    return {
        handle.tensor: arriving_state(
            handle.tensor,
            (first.optimizer, first.groups[handle.group]),
            (second.optimizer, second.groups[handle.group]),
        )
        for unit in sides.units
        if unit.choice is Choice.FIRST
        for handle in unit.movable
    }


def _by_parameter(handles: Iterable[Handle], updates: Mapping[Tensor, Tensor]) -> Step:
    whole: Step = {}
    for handle in handles:
        update = whole.setdefault(handle.parameter, torch.zeros_like(handle.parameter))
        handle.of(update).copy_(updates[handle.tensor])
    return whole
