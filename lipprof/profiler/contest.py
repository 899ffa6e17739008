"""Trial periods for AMOS: both arms are run side by side for a while, and the better goes on.

1. From the first step on both run side by side, from the same parameters over the same batches:
   AMOS as it is, and a replica with everything that may switch on the other arm, the rival.
2. At ``plan.first`` a trial begins: one more replica goes on from where AMOS is, with the other
   arm.  Whoever of those two is ahead after ``plan.period`` iterations has won for its side.
3. If that is the other one, the rival takes AMOS's place.  So training is, bit for bit, that of one
   of the two from the first step on, while what decides has started from common ground.

A second optimizer that is fed curvature, as Sophia, is fed at AMOS's own parameters only: the rival
steps without (Sophia: by the sign of its momentum) until it has won.

Later trials, and one at iteration 0, have no rival: the challenger itself goes on.
``lipprof.advice.contest`` has the plan and says what is compared and why.  Price: one forward and
backward for each step of a replica; n parameters and both optimizers' state for each, and averages,
2n.

With ``calibrate=True`` both find their learning rates side by side (``calibration``), and the trial
waits for that.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from lipprof.advice import Choice, ContestPlan, Losses, Recommendation, judge
from lipprof.curvature import LossClosure, ParameterView, ProbeLoss, displaced, undisturbed
from lipprof.errors import ConfigError
from lipprof.optim import AMOS, Switch
from lipprof.optim.assignment import movable_sizes
from lipprof.profiler.attach import Profiler
from lipprof.profiler.calibration import Calibration
from lipprof.profiler.contestants import Contestant, Trial
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
        self._rival: Contestant | None = None
        self._trial: Trial | None = None
        self._spent = _Cost(0, 0.0)  # until the last trial ended
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
            self._calibrate_by(self._new_calibration())

    def step(self, closure: Callable[[], Any]) -> Any:
        """Take a step, and where a trial is on, one of the other arm with the same closure.

        Args:
            closure: clears the gradients, evaluates the loss, calls ``backward`` and returns the
                loss; each time on the same batch.

        Returns:
            The loss of AMOS's own step.
        """
        if self._trial is None:
            self._begin()
        loss = self.optimizer.step(closure)
        self.iteration += 1
        if self._rival is not None or self._trial is not None:
            self._advance(closure)
        if self._rival is None and self._trial is None:
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

    @property
    def challenger(self) -> Choice:
        """The side that does not train now."""
        return Choice.SECOND if self._incumbent is Choice.FIRST else Choice.FIRST

    def close(self) -> None:
        """Let go of the optimizer, when training is over: its learning rates are as scheduled."""
        if self.calibration is not None:
            self.calibration.close()

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs after a restart, beside the state of AMOS and the model.

        A trial that is on, or arms that run side by side before the first, are not in it: after a
        restart all of that begins again.

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
        if not self.trials:
            self._next = self.iteration + self.plan.first
        self._incumbent = Choice(state["incumbent"])
        self._rival = self._trial = None
        self._trial_seconds, known = float(state["seconds"]), 0
        if self.calibration is not None:
            self.calibration.load_state_dict(state["calibration"])
            known = self.calibration.num_gradients
        self._gone = _Cost(int(state["probe_gradients"]) - known, 0.0)
        self._spent = _Cost(self.extra, self._trial_seconds) if self.trials else _Cost(0, 0.0)

    def _new_calibration(self) -> Calibration:
        """Prepare to find the learning rates of both optimizers from here on."""
        return Calibration(self.optimizer, self._view, self._loss, training=False)

    @property
    def _calibrating(self) -> "_Cost":
        challenger = self._rival or (self._trial and self._trial.contestant)
        return self._gone.plus(self.calibration).plus(challenger and challenger.calibration)

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

    def _begin(self) -> None:
        """Begin what is due: running side by side, or a trial."""
        started = time.perf_counter()
        if self.iteration < self._next:
            if self._rival is None and not self.trials:
                self._rival = self._contestant(self._challenger_calibration())
        elif not self._growing:
            rival = self._rival
            calibration = rival.calibration if rival else self._challenger_calibration()
            self._trial = Trial(
                self._contestant(calibration),
                self._view,
                period=self.plan.period,
                before=self.value() if self.trials else np.nan,
            )
        self._trial_seconds += time.perf_counter() - started

    def _contestant(self, calibration: Calibration | None) -> Contestant:
        return Contestant(self.optimizer, self.challenger, calibration)

    def _challenger_calibration(self) -> Calibration | None:
        return self.calibration and self._new_calibration()

    @property
    def _growing(self) -> bool:
        """Whether a learning rate is still growing where both run side by side."""
        rival = self._rival and self._rival.calibration
        return any(each.growing for each in (self.calibration, rival) if each)

    def _advance(self, closure: Callable[[], Any]) -> None:
        """Step all contestants but AMOS itself, and decide at the end."""
        started, before = time.perf_counter(), self._calibrating.seconds
        ended, trial, alive = None, self._trial, True
        if self._rival is not None:
            alive = self._rival.step(closure, self.calibration)
            self.extra += 1
        if alive and trial is not None:
            alive = trial.step(closure, self.calibration)
            self.extra += 1
        if not alive or (trial is not None and trial.over):
            ended = self._end(alive)
        calibrating = self._calibrating.seconds - before
        self._trial_seconds += time.perf_counter() - started - calibrating
        if ended is not None:
            spent = _Cost(self.extra, self._trial_seconds)
            if self._profiler is not None:
                gradients = spent.gradients - self._spent.gradients
                seconds = spent.seconds - self._spent.seconds
                self._profiler.note(replace(ended, num_gradients=gradients, seconds=seconds))
            self._spent = spent

    def _end(self, alive: bool) -> RecordedTrial:
        """Decide; the cost is to be filled in."""
        trial, incumbent, challenger = self._trial, self._incumbent, self.challenger
        losses = {challenger: Losses(np.inf, np.inf), incumbent: Losses(0.0, 0.0)}
        if alive and trial is not None:
            losses[incumbent] = self._losses(trial.average)
            trial.contestant.replica.exchange()
            losses[challenger] = self._losses(trial.challenger_average)
            trial.contestant.replica.exchange()
        first, second = losses[Choice.FIRST], losses[Choice.SECOND]
        before = trial.before if trial else np.nan
        decision = self._decide(first, second, before)
        self.decisions.append(decision)
        self.trials += 1
        self._next = self.plan.after(self.iteration)
        winner = Choice(int(decision.choice[0]))
        _log.info("iteration %d: %s: %s", self.iteration, winner.label, decision.reason(0))
        contestant = self._rival or (trial and trial.contestant)
        assert contestant is not None
        self._rival = self._trial = None
        if winner is challenger:
            contestant.replica.exchange()
            self._gone = self._gone.plus(self.calibration)
            if contestant.calibration is not None:
                self._calibrate_by(contestant.calibration)
            self._incumbent = winner
            reason = decision.reason(0)
            self.optimizer.switches += [
                Switch(iteration=self.iteration, name=name, choice=winner, reason=reason)
                for name in self._names
            ]
        else:
            self._gone = self._gone.plus(contestant.calibration)
        return RecordedTrial(
            iteration=self.iteration,
            first_loss=first.end,
            second_loss=second.end,
            first_average=first.average,
            second_average=second.average,
            before=before,
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
    """Of trials, or of calibration."""

    gradients: int
    seconds: float

    def plus(self, calibration: Calibration | None) -> "_Cost":
        """Add what one has taken so far."""
        if calibration is None:
            return self
        seconds = sum(reading.seconds for reading in calibration.trace)
        return _Cost(self.gradients + calibration.num_gradients, self.seconds + seconds)
