# pyright: reportPrivateImportUsage=false
"""A second set of everything that training changes, to step AMOS's other arm on the same batches.

Holds n parameters, the model's buffers (running statistics) and a copy of both optimizers' state.
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lipprof.advice import Choice
from lipprof.errors import NonfiniteError
from lipprof.optim.amos import AMOS


class Replica:
    """Parameters, buffers, state and sides of an AMOS; begins as a copy of those it has now.

    Args:
        amos: the AMOS.
        buffers: of the model.
    """

    def __init__(self, amos: AMOS, buffers: Sequence[Tensor] = ()) -> None:
        self._amos, self._buffers = amos, list(buffers)
        self._values = [tensor.detach().clone() for tensor in self._held]
        self._state: dict[Tensor, dict[str, Any]] = {
            p: copy.deepcopy(state) for p, state in amos.state.items()
        }
        self._choices = [unit.choice for unit in amos._assignment.units]
        self._iteration = amos._iteration
        self._tried = [arm.tried for arm in amos._arms]
        self._counters = copy.deepcopy([arm.counters() for arm in amos._arms])

    @property
    def _held(self) -> list[Tensor]:
        parameters = [p for group in self._amos.param_groups for p in group["params"]]
        return [*parameters, *self._buffers]

    @torch.no_grad()
    def exchange(self) -> None:
        """Swap what is held here with what AMOS and the model hold."""
        amos, units = self._amos, self._amos._assignment.units
        values = [tensor.detach().clone() for tensor in self._held]
        torch._foreach_copy_(self._held, self._values)
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

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """Let AMOS and the model be what is held here meanwhile; AMOS's hooks see nothing of it.

        Yields:
            Once.
        """
        amos = self._amos
        hooks = amos._optimizer_step_pre_hooks, amos._optimizer_step_post_hooks
        self.exchange()
        amos._optimizer_step_pre_hooks = OrderedDict()
        amos._optimizer_step_post_hooks = OrderedDict()
        try:
            yield
        finally:
            amos._optimizer_step_pre_hooks, amos._optimizer_step_post_hooks = hooks
            self.exchange()

    def move_all(self, choice: Choice) -> None:
        """Move everything that may switch to one side here; AMOS itself stays as it is."""
        with self.exchanged():
            self._amos._assignment.move_all(choice)

    def step(self, closure: Callable[[], Any]) -> float:
        """Take, within ``exchanged``, the step that AMOS would take with what is held here.

        Args:
            closure: evaluates the loss and its gradient, as for AMOS itself.

        Returns:
            The loss of the closure; infinite where the gradient was not finite.
        """
        try:
            return float(torch.as_tensor(self._amos.step(closure)).detach())
        except NonfiniteError:
            return math.inf

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly: plain types and tensors only."""
        with self.exchanged():
            optimizer = self._amos.state_dict()
        return {"optimizer": optimizer, "values": self._values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; AMOS's own is loaded before."""
        with self.exchanged():
            self._amos.load_state_dict(state["optimizer"])
        values = zip(self._held, state["values"], strict=True)
        self._values = [value.to(here.device, copy=True) for here, value in values]
