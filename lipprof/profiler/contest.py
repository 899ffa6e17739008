"""Trial periods for AMOS: both arms are run side by side for a while, and the better goes on.

Outside trials a step is that of AMOS.  Within one, every batch is used twice, by AMOS as it is and
by a replica with everything that may switch on the other arm: one forward and backward more, with n
parameters and both optimizers' state held twice, and the averages, 2n.  ``lipprof.advice.contest``
has the plan and says what is compared and why.

With ``calibrate=True`` the learning rates of both are found while they compete (``calibration``),
each of the two contestants' own; a trial does not end before they are.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

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
from lipprof.profiler.calibration import Calibration
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
        calibrate: find the learning rates of both optimizers; until they are found, their schedules
            are passed over.
        profiler: what ``attach`` gave for this optimizer: its run file then has the trials, and it
            goes on to recommend, which AMOS no longer follows.

    Attributes:
        iteration: completed steps.
        trials: decided so far.
        extra: closures evaluated for trials, over those that training itself needed.
        decisions: all so far.
        calibration: of the optimizers that train now; None without ``calibrate``.

    Raises:
        ConfigError: the optimizer is not an AMOS, the profiler is another one's or calibrates too,
            or there is no learning rate to calibrate.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: AMOS,
        *,
        loss: LossClosure,
        probe: Sequence[Any] | None = None,
        plan: ContestPlan | None = None,
        calibrate: bool = False,
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
        self._trial_seconds = 0.0
        self._next: float = self.plan.first  # iteration at which a trial begins
        self.decisions: list[Recommendation] = []
        self._profiler = profiler
        if profiler is not None:
            if profiler.optimizer is not optimizer:
                raise ConfigError("`profiler` is attached to another optimizer than this AMOS.")
            if calibrate and profiler.calibration is not None:
                raise ConfigError(
                    "Both the contest and its profiler were asked to calibrate. Within a contest "
                    "each optimizer has a learning rate of its own to find: attach the profiler "
                    "without calibrate=True."
                )
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
        optimizer.await_recommendations()  # its own estimate is off
        self.calibration: Calibration | None = None
        self._told = 0  # readings of it that are in the run file
        self._gone = _Cost(0, 0.0)  # of calibrations that lost
        if calibrate:
            self._calibrate_by(self.new_calibration())

    def step(self, closure: Callable[[], Any]) -> Any:
        """Take a step, and where a trial is on, one of the other arm with the same closure.

        Args:
            closure: clears the gradients, evaluates the loss, calls ``backward`` and returns the
                loss; each time on the same batch.

        Returns:
            The loss of AMOS's own step.
        """
        if self._trial is None and self.iteration >= self._next:
            started = time.perf_counter()
            self._trial = _Trial(self, self.iteration + self.plan.period)
            self._trial_seconds += time.perf_counter() - started
        loss = self.optimizer.step(closure)
        self.iteration += 1
        if self._trial is not None:
            self._advance(self._trial, closure)
        if self._trial is None:
            self._tell_readings()
        return loss

    @property
    def seconds(self) -> float:
        """Wall time spent on trials, their closures included, and on calibration."""
        return self._trial_seconds + self._calibrating.seconds

    @property
    def probe_gradients(self) -> int:
        """Gradients of the probe that calibration took."""
        return self._calibrating.gradients

    def close(self) -> None:
        """Let go of the optimizer, when training is over: its learning rates are as scheduled."""
        if self.calibration is not None:
            self.calibration.close()

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs after a restart, beside the state of AMOS and the model.

        A trial that is on is not in it: after a restart another one begins in its place.

        Returns:
            Plain numbers.
        """
        return {
            "iteration": self.iteration,
            "incumbent": int(self._incumbent),
            "next": self._next,
            "trials": self.trials,
            "extra": self.extra,
            "probe_gradients": self.probe_gradients,
            "seconds": self.seconds,
            "calibration": self.calibration and self.calibration.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as ``state_dict`` says; load AMOS's and the model's state as well.

        Raises:
            ConfigError: one of the two calibrates and the other does not.
        """
        calibrated = self.calibration is not None
        if calibrated != (state["calibration"] is not None):
            raise ConfigError(
                f"The state is of a contest with calibrate={not calibrated}, and this one has "
                f"calibrate={calibrated}: build it as it was."
            )
        self.iteration, self.extra = int(state["iteration"]), int(state["extra"])
        self.trials, self._next = int(state["trials"]), float(state["next"])
        self._incumbent = Choice(state["incumbent"])
        self._trial, self._trial_seconds, known = None, float(state["seconds"]), 0
        if self.calibration is not None:
            self.calibration.load_state_dict(state["calibration"])
            known = self.calibration.num_gradients
        self._gone = _Cost(int(state["probe_gradients"]) - known, 0.0)

    def new_calibration(self) -> Calibration:
        """Prepare to find the learning rates of both optimizers from here on."""
        return Calibration(self.optimizer, self._view, self._loss, training=False)

    @property
    def _calibrating(self) -> "_Cost":
        challenger = self._trial and self._trial.calibration
        return self._gone.plus(self.calibration).plus(challenger)

    def _calibrate_by(self, calibration: Calibration) -> None:
        """Let a calibration scale the learning rates, in place of the one before."""
        self.close()
        calibration.install()
        self.calibration, self._told = calibration, 0
        if self._profiler is not None:
            self._profiler.calibrated_by(calibration)

    def _tell_readings(self) -> None:
        """Record what calibration has read, now that it is clear whose learning rates go on."""
        if self.calibration is not None and self._profiler is not None:
            for reading in self.calibration.trace[self._told :]:
                self._profiler.note(reading)
            self._told = len(self.calibration.trace)

    def _advance(self, trial: "_Trial", closure: Callable[[], Any]) -> None:
        """Take a step of the challenger, and decide at the end."""
        started, before = time.perf_counter(), self._calibrating.seconds
        alive = trial.step(closure, averaging=self.iteration > trial.middle)
        self.extra += 1
        ended = None if alive and not trial.over else self._end(trial, alive)
        calibrating = self._calibrating.seconds - before
        self._trial_seconds += time.perf_counter() - started - calibrating
        if ended is not None and self._profiler is not None:
            gradients, seconds = self.extra - trial.extra, self._trial_seconds - trial.seconds
            self._profiler.note(replace(ended, num_gradients=gradients, seconds=seconds))

    def _end(self, trial: "_Trial", alive: bool) -> RecordedTrial:
        """Decide a trial; its cost is to be filled in."""
        incumbent = self._incumbent
        losses = {trial.challenger: Losses(np.inf, np.inf), incumbent: Losses(0.0, 0.0)}
        if alive:
            losses[incumbent] = self._losses(trial.average)
            trial.replica.exchange()
            losses[trial.challenger] = self._losses(trial.challenger_average)
            trial.replica.exchange()
        first, second = losses[Choice.FIRST], losses[Choice.SECOND]
        decision = self._decide(first, second, trial.before)
        self.decisions.append(decision)
        self.trials += 1
        self._next = self.plan.after(self.iteration)
        winner = Choice(int(decision.choice[0]))
        _log.info("iteration %d: %s: %s", self.iteration, winner.label, decision.reason(0))
        if winner is trial.challenger:
            trial.replica.exchange()
            self._gone = self._gone.plus(self.calibration)
            if trial.calibration is not None:
                self._calibrate_by(trial.calibration)
            self._incumbent = winner
            reason = decision.reason(0)
            self.optimizer.switches += [
                Switch(iteration=self.iteration, name=name, choice=winner, reason=reason)
                for name in self._names
            ]
        else:
            self._gone = self._gone.plus(trial.calibration)
        self._trial = None
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
        return judge(
            self.iteration,
            self._names,
            self._numel,
            first=first,
            second=second,
            incumbent=self._incumbent,
            before=before,
        )


class _Cost(NamedTuple):
    """Of calibration."""

    gradients: int  # of the probe
    seconds: float

    def plus(self, calibration: Calibration | None) -> "_Cost":
        """Add what one has taken so far."""
        if calibration is None:
            return self
        seconds = sum(reading.seconds for reading in calibration.trace)
        return _Cost(self.gradients + calibration.num_gradients, self.seconds + seconds)


class _Trial:
    """One trial: the replica, and both averages."""

    def __init__(self, contest: Contest, end: int) -> None:
        incumbent = contest._incumbent
        self.end, self.middle = end, end - contest.plan.period // 2 - 1
        self.challenger = Choice.SECOND if incumbent is Choice.FIRST else Choice.FIRST
        self._contest, self._view = contest, contest._view
        self.extra, self.seconds = contest.extra, contest._trial_seconds  # as it begins
        self.before = contest.value() if contest.trials else np.nan
        self.replica = Replica(contest.optimizer)
        self.replica.move_all(self.challenger)
        self.calibration = contest.calibration and contest.new_calibration()
        self._sums = [torch.zeros_like(self._view.snapshot()) for _ in range(2)]
        self._count = 0

    @property
    def over(self) -> bool:
        """Whether it is time to decide: nobody's learning rate is still growing."""
        contestants = self._contest.calibration, self.calibration
        growing = any(each.growing for each in contestants if each)
        return self._contest.iteration >= self.end and not growing

    def step(self, closure: Callable[[], Any], *, averaging: bool) -> bool:
        """Step the challenger; False: its loss is not finite any more."""
        if averaging:
            self._sums[0] += self._view.snapshot()
            self._count += 1

        def after() -> None:
            if averaging:
                self._sums[1].add_(self._view.snapshot())

        with _without(self._contest.calibration):
            loss = self.replica.step(closure, after, during=_with(self.calibration))
        return bool(np.isfinite(loss))

    @property
    def average(self) -> Tensor:
        """Of AMOS's own parameters."""
        return self._sums[0] / self._count

    @property
    def challenger_average(self) -> Tensor:
        """Of the replica's."""
        return self._sums[1] / self._count


@contextmanager
def _with(calibration: Calibration | None) -> Iterator[None]:
    """Let a calibration see what is stepped inside."""
    if calibration is not None:
        calibration.install()
    try:
        yield
    finally:
        if calibration is not None:
            calibration.close()


@contextmanager
def _without(calibration: Calibration | None) -> Iterator[None]:
    """Let a calibration see nothing of what is stepped inside."""
    if calibration is not None:
        calibration.close()
    try:
        yield
    finally:
        if calibration is not None:
            calibration.install()
