# pyright: reportPrivateImportUsage=false
"""A second set of everything that AMOS changes, for a trial of the other arm on the same batches.

Holds n parameters and a copy of both optimizers' state.  Buffers of the model are not doubled:
running statistics see the forwards of both.
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from lipprof.advice import Choice
from lipprof.errors import NonfiniteError
from lipprof.optim.amos import AMOS


class Replica:
    """Parameters, state and sides of an AMOS; begins as a copy of those it has now."""

    def __init__(self, amos: AMOS) -> None:
        self._amos = amos
        held = [p for group in amos.param_groups for p in group["params"]]
        self._values = [p.detach().clone() for p in held]
        self._state: dict[Tensor, dict[str, Any]] = {
            p: copy.deepcopy(state) for p, state in amos.state.items()
        }
        self._choices = [unit.choice for unit in amos._assignment.units]
        self._iteration = amos._iteration
        self._tried = [arm.tried for arm in amos._arms]
        self._counters = copy.deepcopy([arm.counters() for arm in amos._arms])

    @torch.no_grad()
    def exchange(self) -> None:
        """Swap what is held here with what AMOS and the model hold."""
        amos, units = self._amos, self._amos._assignment.units
        held = [p for group in amos.param_groups for p in group["params"]]
        values = [p.detach().clone() for p in held]
        torch._foreach_copy_(held, self._values)
        self._values = values
        state = dict(amos.state)
        amos.state = self._state  # pyright: ignore[reportAttributeAccessIssue]
        self._state = state
        for i, unit in enumerate(units):
            self._choices[i], unit.choice = unit.choice, self._choices[i]
        tried = [arm.tried for arm in amos._arms]
        counters = [arm.counters() for arm in amos._arms]
        for arm, held in zip(amos._arms, self._counters, strict=True):
            arm.load_counters(held)
        amos._assignment.place()  # forgets what was tried
        for arm, known in zip(amos._arms, self._tried, strict=True):
            arm.tried = known
        self._tried, self._counters = tried, counters
        self._iteration, amos._iteration = amos._iteration, self._iteration

    def move_all(self, choice: Choice) -> None:
        """Move everything that may switch to one side here; AMOS itself stays as it is."""
        self.exchange()
        try:
            self._amos._assignment.move_all(choice)
        finally:
            self.exchange()

    def step(
        self,
        closure: Callable[[], Any],
        after: Callable[[], None],
        *,
        during: AbstractContextManager[Any],
    ) -> float:
        """Take the step that AMOS would take with what is held here.  Its hooks do not see it.

        Args:
            closure: evaluates the loss and its gradient, as for AMOS itself.
            after: called with the model as it is here after the step.
            during: entered while AMOS is what is held here.

        Returns:
            The loss of the closure; infinite where the gradient was not finite.
        """
        amos = self._amos
        hooks = amos._optimizer_step_pre_hooks, amos._optimizer_step_post_hooks
        self.exchange()
        amos._optimizer_step_pre_hooks = OrderedDict()
        amos._optimizer_step_post_hooks = OrderedDict()
        try:
            with during:
                loss = torch.as_tensor(amos.step(closure)).detach()
                after()
        except NonfiniteError:
            return math.inf
        finally:
            amos._optimizer_step_pre_hooks, amos._optimizer_step_post_hooks = hooks
            self.exchange()
        return float(loss)
