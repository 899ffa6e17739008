"""Trial periods for AMOS: at a few moments both arms are run side by side, and the better goes on.

Outside trials a step is that of AMOS.  Within one, every batch is used twice, by AMOS as it is and
by a replica with everything that may switch on the other arm: one forward and backward more, with n
parameters and both optimizers' state held twice, and the averages, 2n.  ``lipprof.advice.contest``
has the plan and says what is compared and why.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipprof.advice import Choice, ContestPlan, Losses, Recommendation, judge
from lipprof.curvature import LossClosure, ParameterView, ProbeLoss, displaced, undisturbed
from lipprof.errors import ConfigError
from lipprof.optim import AMOS, Switch
from lipprof.optim.assignment import movable_sizes
from lipprof.optim.replica import Replica
from lipprof.profiler.attach import Profiler
from lipprof.record import RecordedTrial

_log = logging.getLogger("lipprof")


class Contest:
    """Lets AMOS's two optimizers compete; ``contest.step(closure)`` replaces ``optimizer.step``.

    ::

        contest = lipprof.Contest(model, optimizer, loss=lambda m: m.loss(probe))

        def closure():
            optimizer.zero_grad()
            loss = model.loss(batch)
            loss.backward()
            return loss

        contest.step(closure)

    With several processes the loss has to be the same on each: give each the same probe.

    Args:
        model: whose parameters ``optimizer`` steps.
        optimizer: an AMOS; from now on nothing else decides in it.
        loss: ``loss(model) -> scalar`` over a fixed probe, by which trials are decided.
        probe: microbatches for ``loss(model, batch)``, weighted by their sizes.
        plan: when trials are.
        profiler: what ``attach`` gave for this optimizer: its run file then has the trials, and it
            goes on to recommend, which AMOS no longer follows.

    Attributes:
        iteration: completed steps.
        trials: decided so far.
        extra: closures evaluated for trials, over those that training itself needed.
        seconds: spent on trials, those closures included.
        decisions: all so far.

    Raises:
        ConfigError: the optimizer is not an AMOS, or the profiler is another one's.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: AMOS,
        *,
        loss: LossClosure,
        probe: Sequence[Any] | None = None,
        plan: ContestPlan | None = None,
        profiler: Profiler | None = None,
    ) -> None:
        if not isinstance(optimizer, AMOS):
            raise ConfigError(
                f"Got a {type(optimizer).__name__}: a contest is between the two optimizers of "
                "an AMOS. Build lipprof.AMOS(params, first=..., second=...)."
            )
        self.model, self.optimizer = model, optimizer
        self.plan = plan or ContestPlan()
        self.iteration = self.trials = self.extra = 0
        self.seconds = 0.0
        self.decisions: list[Recommendation] = []
        self._profiler = profiler
        if profiler is not None:
            if profiler.optimizer is not optimizer:
                raise ConfigError("`profiler` is attached to another optimizer than this AMOS.")
            profiler.stop_leading()
        self._loss = ProbeLoss(model, loss, probe)
        self._view = ParameterView.of(model, optimizer)
        self._trial: _Trial | None = None
        units = optimizer._assignment.units
        self._names, self._numel = movable_sizes(units)
        sides = {unit.choice for unit in units if unit.movable}
        if len(sides) > 1:
            raise ConfigError(
                "The tensors that may switch are on both sides already; a contest is between all "
                "on the one and all on the other. Start it with a new AMOS."
            )
        self._incumbent = sides.pop()
        optimizer.follow(self._uniform(self._incumbent))  # its own estimate is off

    def step(self, closure: Callable[[], Any]) -> Any:
        """Take a step, and where a trial is on, one of the other arm with the same closure.

        Args:
            closure: clears the gradients, evaluates the loss, calls ``backward`` and returns the
                loss; each time on the same batch.

        Returns:
            The loss of AMOS's own step.
        """
        length = self.plan.length(self.iteration)
        if length and self._trial is None:
            started = time.perf_counter()
            self._trial = _Trial(self, self.iteration + length, length)
            self.seconds += time.perf_counter() - started
        loss = self.optimizer.step(closure)
        self.iteration += 1
        if (trial := self._trial) is not None:
            started = time.perf_counter()
            ended = self._advance(trial, closure)
            self.seconds += time.perf_counter() - started
            if ended is not None and self._profiler is not None:
                gradients, seconds = self.extra - trial.extra, self.seconds - trial.seconds
                self._profiler.note(replace(ended, num_gradients=gradients, seconds=seconds))
        return loss

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs after a restart, beside the state of AMOS and the model.

        A trial that is on is not in it: after a restart it is given up, and the next one decides.

        Returns:
            Plain numbers.
        """
        return {
            "iteration": self.iteration,
            "incumbent": int(self._incumbent),
            "trials": self.trials,
            "extra": self.extra,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as ``state_dict`` says; load AMOS's and the model's state as well."""
        self.iteration, self.extra = int(state["iteration"]), int(state["extra"])
        self.trials = int(state.get("trials", 0))
        self.seconds, self._incumbent = float(state["seconds"]), Choice(state["incumbent"])
        self._trial = None

    def _advance(self, trial: "_Trial", closure: Callable[[], Any]) -> RecordedTrial | None:
        """Take a step of the challenger, and decide at the end, without the cost."""
        alive = trial.step(closure, averaging=self.iteration > trial.middle)
        self.extra += 1
        if alive and self.iteration < trial.end:
            return None
        self._trial = None
        incumbent = self._incumbent
        losses = {trial.challenger: Losses(np.inf, np.inf), self._incumbent: Losses(0.0, 0.0)}
        if alive:
            losses[self._incumbent] = self._losses(trial.average)
            trial.replica.exchange()
            losses[trial.challenger] = self._losses(trial.challenger_average)
            trial.replica.exchange()
        decision = self._decide(losses[Choice.FIRST], losses[Choice.SECOND], trial.before)
        self.decisions.append(decision)
        self.trials += 1
        winner = Choice(int(decision.choice[0]))
        _log.info("iteration %d: %s: %s", self.iteration, winner.label, decision.reason(0))
        if winner is trial.challenger:
            trial.replica.exchange()
            self._incumbent = winner
            reason = decision.reason(0)
            self.optimizer.switches += [
                Switch(iteration=self.iteration, name=name, choice=winner, reason=reason)
                for name in self._names
            ]
        first, second = losses[Choice.FIRST], losses[Choice.SECOND]
        return RecordedTrial(
            iteration=self.iteration,
            first_loss=first.end,
            second_loss=second.end,
            first_average=first.average,
            second_average=second.average,
            before=trial.before,
            num_gradients=0,
            seconds=0.0,
            incumbent=incumbent,
            winner=winner,
        )

    def _losses(self, average: Tensor) -> Losses:
        """Of the probe, at the present parameters and at an average."""
        with undisturbed(self.model, training=False), displaced(self._view, average):
            at_average = self._loss.value()
        return Losses(self.value(), at_average)

    def value(self) -> float:
        """Evaluate the probe's loss at the present parameters; nothing else changes."""
        with undisturbed(self.model, training=False):
            return self._loss.value()

    def _decide(self, first: Losses, second: Losses, before: float) -> Recommendation:
        """Say who goes on after a trial; ``before``: loss as it began, NaN: any lead will do."""
        return self._judge(first, second, before)

    def _judge(self, first: Losses, second: Losses, before: float = np.nan) -> Recommendation:
        return judge(
            self.iteration,
            self._names,
            self._numel,
            first=first,
            second=second,
            incumbent=self._incumbent,
            before=before,
        )

    def _uniform(self, side: Choice) -> Recommendation:
        """Everything to one side."""
        ahead, behind = Losses(0.0, 0.0), Losses(1.0, 1.0)
        sides = (ahead, behind) if side is Choice.FIRST else (behind, ahead)
        return self._judge(*sides)


class _Trial:
    """One trial: the replica, and both averages."""

    def __init__(self, contest: Contest, end: int, length: int) -> None:
        incumbent = contest._incumbent
        self.end, self.middle = end, end - length // 2 - 1
        self._ramp, self._taken = max(1, contest.plan.ramp), 0
        self.challenger = Choice.SECOND if incumbent is Choice.FIRST else Choice.FIRST
        self._view = contest._view
        self.extra, self.seconds = contest.extra, contest.seconds  # as it begins
        self.before = contest.value() if contest.trials else np.nan
        self.replica = Replica(contest.optimizer)
        self.replica.assign(contest._uniform(self.challenger))
        self._sums = [torch.zeros_like(self._view.snapshot()) for _ in range(2)]
        self._count = 0

    def step(self, closure: Callable[[], Any], *, averaging: bool) -> bool:
        """Step the challenger; False: its loss is not finite any more."""
        if averaging:
            self._sums[0] += self._view.snapshot()
            self._count += 1

        def after() -> None:
            if averaging:
                self._sums[1].add_(self._view.snapshot())

        self._taken += 1
        scale = min(1.0, self._taken / self._ramp)
        return bool(np.isfinite(self.replica.step(closure, after, scale=scale)))

    @property
    def average(self) -> Tensor:
        """Of AMOS's own parameters."""
        return self._sums[0] / self._count

    @property
    def challenger_average(self) -> Tensor:
        """Of the replica's."""
        return self._sums[1] / self._count
