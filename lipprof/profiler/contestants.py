"""What is stepped beside AMOS in a contest: replicas of it, and averages of their parameters."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from lipprof.advice import Entry, Losses
from lipprof.curvature import ParameterView, ProbeLoss, RandomState, displaced, undisturbed
from lipprof.optim import AMOS
from lipprof.optim.replica import Replica
from lipprof.profiler.calibration import Calibration

Closure = Callable[[], Any]


class Contestant:
    """A replica of AMOS as it is now, with everything that may switch on the entry's side.

    Args:
        model: whose parameters are stepped.
        optimizer: the AMOS.
        entry: who it is.
        calibration: of the replica's learning rates; it sees the replica's steps alone.
    """

    def __init__(
        self, model: nn.Module, optimizer: AMOS, entry: Entry, calibration: Calibration | None
    ) -> None:
        self.calibration = calibration
        self._optimizer = optimizer
        self.replica = Replica(optimizer, list(model.buffers()))
        self.replica.move_all(entry.side)

    def step(
        self,
        closure: Closure,
        observe: Closure | None,
        after: Callable[[], None] = lambda: None,
    ) -> bool:
        """Take a step.

        Args:
            closure: evaluates the loss and its gradient.
            observe: feeds AMOS curvature, where its second optimizer wants it.
            after: called with the model as it is here after the step.

        Returns:
            Whether the loss and the gradient were finite.
        """
        with self.replica.exchanged(), _seen_by(self.calibration):
            feed(self._optimizer, observe)
            loss = self.replica.step(closure)
            after()
        return math.isfinite(loss)


def probe_value(loss: ProbeLoss) -> float:
    """Evaluate the probe's loss at the present parameters; nothing else changes."""
    with undisturbed(loss.model, training=False):
        return loss.value()


def feed(optimizer: AMOS, observe: Closure | None) -> None:
    """Have AMOS fed curvature, where its second optimizer wants it."""
    if observe is not None and optimizer.curvature_due:
        observe()


class Trial:
    """Entries that go on from the same parameters and state, and their averages.

    Args:
        incumbent: the entry that AMOS itself is.
        contestants: the others; made when the trial begins.
        view: the parameters.
        loss: of the probe.
        period: length; the second half is averaged over.

    Attributes:
        contestants: see above.
        before: loss where it began.
    """

    def __init__(
        self,
        incumbent: Entry,
        contestants: Mapping[Entry, Contestant],
        view: ParameterView,
        loss: ProbeLoss,
        period: int,
    ) -> None:
        self.contestants = dict(contestants)
        self.before = probe_value(loss)
        self._incumbent, self._view, self._loss, self._period = incumbent, view, loss, period
        self._taken = 0
        self._sums = {
            entry: torch.zeros_like(view.snapshot()) for entry in (incumbent, *contestants)
        }

    @property
    def over(self) -> bool:
        """Whether it is time to decide."""
        return self._taken >= self._period

    def begin_step(self) -> None:
        """Take in the step of AMOS itself."""
        self._taken += 1
        self._add(self._incumbent)

    def step(self, entry: Entry, closure: Closure, observe: Closure | None) -> bool:
        """Step one of the others; see ``Contestant.step``."""
        return self.contestants[entry].step(closure, observe, lambda: self._add(entry))

    def losses(self, entry: Entry) -> Losses:
        """Evaluate an entry where it is and at its average; nothing else changes."""
        here = entry == self._incumbent
        place = nullcontext() if here else self.contestants[entry].replica.exchanged()
        with place:
            with displaced(self._view, self._sums[entry] / (self._period // 2)):
                average = probe_value(self._loss)
            return Losses(probe_value(self._loss), average)

    def _add(self, entry: Entry) -> None:
        if self._taken > self._period - self._period // 2:
            self._sums[entry] += self._view.snapshot()

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly: plain types and tensors only."""
        return {
            "taken": self._taken,
            "before": self.before,
            "sums": by_label(self._sums),
            "replicas": {e.label: c.replica.state_dict() for e, c in self.contestants.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken, with the same entries."""
        self._taken, self.before = state["taken"], state["before"]
        for entry, total in self._sums.items():
            total.copy_(state["sums"][entry.label])
        for entry, contestant in self.contestants.items():
            contestant.replica.load_state_dict(state["replicas"][entry.label])


def by_label(entries: Mapping[Entry, Any]) -> dict[str, Any]:
    """The same with the entries' labels as keys, for a state_dict."""
    return {entry.label: value for entry, value in entries.items()}


@contextmanager
def replayed(model: nn.Module, random: RandomState) -> Iterator[None]:
    """Take a step again: with the same random numbers, and without a trace in either or ``.grad``.

    Args:
        model: whose gradients are put back.
        random: captured before the step.

    Yields:
        Once.
    """
    after, gradients = RandomState.capture(), [(p, p.grad) for p in model.parameters()]
    random.restore()
    for p, _ in gradients:
        p.grad = None  # so that nothing is written into those that are put back
    try:
        yield
    finally:
        for p, gradient in gradients:
            p.grad = gradient
        after.restore()


@contextmanager
def _seen_by(calibration: Calibration | None) -> Iterator[None]:
    if calibration is None:
        yield
        return
    calibration.install()
    try:
        yield
    finally:
        calibration.close()
