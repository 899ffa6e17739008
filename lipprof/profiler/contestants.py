"""What is stepped beside AMOS in a contest: replicas with the other optimizer, and averages."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipprof.advice import Choice
from lipprof.curvature import ParameterView
from lipprof.optim import AMOS
from lipprof.optim.replica import Replica
from lipprof.profiler.calibration import Calibration


class Contestant:
    """A replica of AMOS as it is now, with everything that may switch on one side.

    Args:
        optimizer: the AMOS.
        side: that one.
        calibration: of the replica's learning rates.
    """

    def __init__(self, optimizer: AMOS, side: Choice, calibration: Calibration | None) -> None:
        self.calibration = calibration
        self.replica = Replica(optimizer)
        self.replica.move_all(side)

    def step(
        self,
        closure: Callable[[], Any],
        installed: Calibration | None,
        after: Callable[[], None] = lambda: None,
    ) -> bool:
        """Take a step.

        Args:
            closure: evaluates the loss and its gradient.
            installed: the calibration of AMOS itself, which does not see this step.
            after: called with the model as it is here after the step.

        Returns:
            Whether the loss and the gradient were finite.
        """
        with _seeing(installed, False):
            loss = self.replica.step(closure, after, during=_seeing(self.calibration, True))
        return bool(np.isfinite(loss))


class Trial:
    """Both optimizers from the same parameters and state, and their averages.

    Args:
        contestant: steps beside AMOS; made when the trial begins.
        view: the parameters.
        period: length; the second half is averaged over.
        before: loss as it begins, where a margin is asked for.
    """

    def __init__(
        self, contestant: Contestant, view: ParameterView, *, period: int, before: float
    ) -> None:
        self.contestant, self.before = contestant, before
        self._view, self._period = view, period
        self._taken = self._count = 0
        self._sums = [torch.zeros_like(view.snapshot()) for _ in range(2)]

    @property
    def over(self) -> bool:
        """Whether it is time to decide: the challenger's learning rate does not grow any more."""
        calibration = self.contestant.calibration
        growing = calibration is not None and calibration.growing
        return self._taken >= self._period and not growing

    def step(self, closure: Callable[[], Any], installed: Calibration | None) -> bool:
        """Step the challenger, after AMOS itself; see ``Contestant.step``."""
        self._taken += 1
        averaging = self._taken >= self._period - self._period // 2
        if averaging:
            self._sums[0] += self._view.snapshot()
            self._count += 1

        def after() -> None:
            if averaging:
                self._sums[1].add_(self._view.snapshot())

        return self.contestant.step(closure, installed, after)

    @property
    def average(self) -> Tensor:
        """Of AMOS's own parameters."""
        return self._sums[0] / self._count

    @property
    def challenger_average(self) -> Tensor:
        """Of the replica's."""
        return self._sums[1] / self._count


@contextmanager
def _seeing(calibration: Calibration | None, wanted: bool) -> Iterator[None]:
    """Let a calibration see what is stepped inside, or not, and the other way round outside."""
    if calibration is None:
        yield
        return
    enter, leave = calibration.install, calibration.close
    if not wanted:
        enter, leave = leave, enter
    enter()
    try:
        yield
    finally:
        leave()
