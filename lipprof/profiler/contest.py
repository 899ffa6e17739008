"""Trial periods for AMOS: its optimizers are run side by side for a while, and the best goes on.

1. From the first step on all entries run side by side, from the same parameters over the same
   batches: AMOS as it is, and for every other entry a replica, its racer.
2. At ``plan.start`` a trial begins: for each racer one more replica goes on from where AMOS is.
   Who is ahead after ``plan.period`` iterations of that has won.
3. If that is not AMOS as it is, the winner's racer takes its place.  So training is, bit for bit,
   that of one of the entries from the first step on, while what decides has started from common
   ground.

With ``calibrate=True`` both optimizers compete twice, as they were given and with the learning
rates that ``calibration`` finds for them.  The trial waits until those are found; where they are
about the given ones (within a factor of 2), those are confirmed and compete alone.

``lipprof.advice.contest`` says what is compared and why.  Price: a forward and backward for each
step of a replica; n parameters, buffers and both optimizers' state for each, and averages, n.
Replicas draw the random numbers that AMOS's own step has drawn, so that dropout is theirs too.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from lipprof.advice import Choice, ContestPlan, Entry, Losses, TrialOutcome
from lipprof.curvature import (
    LossClosure,
    ParameterView,
    ProbeLoss,
    RandomState,
)
from lipprof.errors import ConfigError
from lipprof.optim import AMOS, Switch
from lipprof.optim.assignment import movable_sizes
from lipprof.profiler.attach import Profiler
from lipprof.profiler.calibration import Calibration
from lipprof.profiler.contestants import (
    Closure,
    Contestant,
    Trial,
    by_label,
    feed,
    probe_value,
    replayed,
)
from lipprof.profiler.sources.hooks import closure_in
from lipprof.record import RecordedTrial

_log = logging.getLogger("lipprof")


class Contest:
    """Lets AMOS's two optimizers compete; the loop calls ``optimizer.step(closure)`` as ever.

    ::

        contest = lipprof.Contest(model, optimizer, loss=lambda m: m.loss(probe))

        def closure():
            optimizer.zero_grad()
            loss = model.loss(batch)
            loss.backward()
            return loss

        optimizer.step(closure)

    With several processes the loss has to be the same on each: give each the same probe.

    Args:
        model: whose parameters ``optimizer`` steps.
        optimizer: an AMOS that has not switched yet; from now on nothing else decides in it.
        loss: ``loss(model) -> scalar`` over a fixed probe, by which the trial is decided.
        probe: microbatches for ``loss(model, batch)``, weighted by their sizes.
        plan: when the trial is.
        calibrate: let both compete with calibrated learning rates as well.
        profiler: what ``attach`` gave for this optimizer: its run file then has the trial, and it
            goes on to recommend, which AMOS no longer follows.

    Attributes:
        iteration: completed steps.
        entry: who trains now.
        extra: closures evaluated for the contest, over those that training itself needed.
        seconds: wall time spent on the contest, its closures and calibration included.
        outcome: of the trial; None before its end.
        calibration: of the optimizers that train now; None where they are as given.

    Raises:
        ConfigError: the optimizer is not an AMOS or has switched, the profiler is another one's or
            calibrates too, or there is no learning rate to calibrate.
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
        self.entry, *self._challengers = _entries(optimizer, calibrate)
        self.model, self.optimizer = model, optimizer
        self.plan = plan or ContestPlan()
        self.iteration = self.extra = 0
        self.seconds = 0.0
        self.outcome: TrialOutcome | None = None
        self.calibration: Calibration | None = None
        self._loss = ProbeLoss(model, loss, probe)
        self._view = ParameterView.of(model, optimizer)
        self._calibrations = {
            entry: Calibration(optimizer, self._view, self._loss, training=False)
            for entry in self._challengers
            if entry.calibrated
        }
        self._racers: dict[Entry, Contestant] = {}
        self._lost: list[Entry] = []  # diverged
        self._trial: Trial | None = None
        self._profiler = profiler
        if profiler is not None:
            _check_profiler(profiler, optimizer, calibrate)
            profiler.stop_leading()
        optimizer.await_recommendations()  # its own estimate is off
        self._closure: Closure | None = None  # of the step that is being taken
        self._observe: Closure | None = None
        self._random: RandomState | None = None  # before it
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def step(self, closure: Closure, observe: Closure | None = None) -> Any:
        """Call ``optimizer.step``, with what feeds a second optimizer that takes curvature.

        Args:
            closure: clears the gradients, evaluates the loss, calls ``backward`` and returns the
                loss; each time on the same batch.
            observe: feeds AMOS's second optimizer curvature (``optimizer.observe_...``) at the
                present parameters.  Called before a step where ``optimizer.curvature_due``, for
                AMOS itself and for every replica.  Has to draw the same random numbers each time:
                from the global generators, or from one of its own that it resets.

        Returns:
            The loss of AMOS's own step.
        """
        self._observe = observe
        try:
            return self.optimizer.step(closure)
        finally:
            self._observe = None

    def _before_step(
        self, _: Optimizer, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        if self.outcome is None:
            self._closure = closure_in(arguments, keywords)
            if self._closure is None:
                raise ConfigError(
                    "Until a contest is decided every contestant steps on the same batch, which "
                    "takes a closure: call optimizer.step(closure)."
                )
            with self._timed():
                self._begin()
                self._random = RandomState.capture()
        feed(self.optimizer, self._observe)

    def _after_step(self, *_: Any) -> None:
        self.iteration += 1
        if self.outcome is not None:
            return
        with self._timed():
            self._step_replicas()
            over = not self._racers or (self._trial is not None and self._trial.over)
            outcome = self._compare() if over else None
        if outcome is not None:
            self._conclude(outcome)

    @property
    def probe_gradients(self) -> int:
        """Gradients of the probe that calibration took."""
        return sum(calibration.num_gradients for calibration in self._calibrations.values())

    @property
    def verdicts(self) -> dict[str, tuple[str, ...]]:
        """What calibration made of both given learning rates, by who was calibrated."""
        return {entry.label: found.verdicts for entry, found in self._calibrations.items()}

    def close(self) -> None:
        """Let go of the optimizer, when training is over: its learning rates are as scheduled."""
        for hook in self._hooks:
            hook.remove()
        if self.calibration is not None:
            self.calibration.close()

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs after a restart, beside the state of AMOS and the model.

        Returns:
            Plain types and tensors; before the end of the trial parameters and state of every
            replica.
        """
        losses = self.outcome and self.outcome.losses
        return {
            "iteration": self.iteration,
            "entry": self.entry.label,
            "extra": self.extra,
            "seconds": self.seconds,
            "before": self.outcome and self.outcome.before,
            "losses": losses and by_label({e: tuple(each) for e, each in losses.items()}),
            "lost": [entry.label for entry in self._lost],
            "calibrations": by_label({e: c.state_dict() for e, c in self._calibrations.items()}),
            "racers": by_label({e: r.replica.state_dict() for e, r in self._racers.items()}),
            "trial": self._trial and self._trial.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as ``state_dict`` says; load the model's and AMOS's state before.

        Raises:
            ConfigError: one of the two calibrates and the other does not.
        """
        if state["calibrations"].keys() != by_label(self._calibrations).keys():
            calibrated = bool(self._calibrations)
            raise ConfigError(
                f"The state is of a contest with calibrate={not calibrated}, and this one has "
                f"calibrate={calibrated}: build it as it was."
            )
        entries = by_label({entry: entry for entry in (self.entry, *self._challengers)})
        self.iteration, self.extra = state["iteration"], state["extra"]
        self.seconds = state["seconds"]
        self._lost = [entries[label] for label in state["lost"]]
        for entry, calibration in self._calibrations.items():
            calibration.load_state_dict(state["calibrations"][entry.label])
        self._racers = {
            entries[label]: self._contestant(entries[label]) for label in state["racers"]
        }
        for entry, racer in self._racers.items():
            racer.replica.load_state_dict(state["racers"][entry.label])
        if state["trial"] is not None:
            self._trial = self._new_trial()
            self._trial.load_state_dict(state["trial"])
        if state["losses"] is not None:
            known = {entries[label]: Losses(*both) for label, both in state["losses"].items()}
            self.outcome = TrialOutcome(known, state["before"], self._lowered(known))
            self._hand_over(entries[state["entry"]])

    def _contestant(self, entry: Entry) -> Contestant:
        return Contestant(self.model, self.optimizer, entry, self._calibrations.get(entry))

    def _new_trial(self) -> Trial:
        challengers = {entry: self._contestant(entry) for entry in self._racers}
        return Trial(self.entry, challengers, self._view, self._loss, self.plan.period)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started

    def _begin(self) -> None:
        """Begin what is due: running side by side, or the trial."""
        if self.iteration == 0:
            self._racers = {entry: self._contestant(entry) for entry in self._challengers}
        elif self.iteration >= self.plan.start and self._trial is None and not self._growing:
            for entry, racer in list(self._racers.items()):
                if racer.calibration is not None and racer.calibration.confirms:
                    del self._racers[entry]
            self._trial = self._new_trial()

    @property
    def _growing(self) -> bool:
        """Whether a learning rate is still to be found."""
        known = (racer.calibration for racer in self._racers.values())
        return any(calibration.growing for calibration in known if calibration is not None)

    def _step_replicas(self) -> None:
        closure, random, trial = self._closure, self._random, self._trial
        assert closure is not None
        assert random is not None
        if trial is not None:
            trial.begin_step()
        for entry, racer in list(self._racers.items()):
            with replayed(self.model, random):
                alive = racer.step(closure, self._observe)
            self.extra += 1
            if alive and trial is not None:
                with replayed(self.model, random):
                    alive = trial.step(entry, closure, self._observe)
                self.extra += 1
            if not alive:
                del self._racers[entry]
                self._lost.append(entry)
        self._closure = None

    def _compare(self) -> TrialOutcome:
        """Evaluate all that are in the trial, where they are."""
        trial = self._trial
        if trial is None:  # all others have diverged before it
            before, losses = np.nan, {self.entry: Losses(probe_value(self._loss), np.nan)}
        else:
            before = trial.before
            losses = {entry: trial.losses(entry) for entry in (self.entry, *self._racers)}
        losses |= dict.fromkeys(self._lost, Losses(np.inf, np.inf))
        return TrialOutcome(losses, before, self._lowered(losses))

    def _lowered(self, among: Iterable[Entry]) -> frozenset[Entry]:
        """Whose learning rate, that of the side that it is about, calibration has lowered."""
        sides = {
            e: self._calibrations[e].sides[e.side - Choice.FIRST] for e in among if e.calibrated
        }
        return frozenset(entry for entry, side in sides.items() if side.times_given < 1)

    def _conclude(self, outcome: TrialOutcome) -> None:
        """Let the winner go on, and tell of it."""
        incumbent, winner = self.entry, self._winner(outcome)
        self.outcome = outcome
        _log.info("iteration %d: the %s: %s", self.iteration, winner.label, outcome.reason)
        if winner != incumbent:
            self._racers[winner].replica.exchange()
        self._hand_over(winner)
        if winner.side is not incumbent.side:
            names, _ = movable_sizes(self.optimizer._assignment.units)
            common: dict[str, Any] = {"iteration": self.iteration, "reason": outcome.reason}
            self.optimizer.switches += [
                Switch(name=name, choice=winner.side, **common) for name in names
            ]
        if self._profiler is not None:
            self._record(outcome, incumbent, self._profiler)

    def _winner(self, outcome: TrialOutcome) -> Entry:
        """Say who goes on."""
        return outcome.winner

    def _hand_over(self, winner: Entry) -> None:
        """Go on as the winner, whose parameters and state AMOS has."""
        self.entry, self._racers, self._trial = winner, {}, None
        self.calibration = self._calibrations.get(winner)
        if self.calibration is not None:
            self.calibration.install()
        if self._profiler is not None:
            self._profiler.calibrated_by(self.calibration)

    def _record(self, outcome: TrialOutcome, incumbent: Entry, profiler: Profiler) -> None:
        for reading in self.calibration.trace if self.calibration is not None else []:
            profiler.note(reading)
        profiler.note(
            RecordedTrial.of(
                outcome,
                self.entry,
                iteration=self.iteration,
                num_gradients=self.extra,
                seconds=self.seconds,
                incumbent=incumbent.side,
            )
        )


def _entries(optimizer: AMOS, calibrate: bool) -> list[Entry]:
    """Who competes, AMOS as it is first."""
    if not isinstance(optimizer, AMOS):
        raise ConfigError(
            f"Got a {type(optimizer).__name__}: a contest is between the two optimizers of "
            "an AMOS. Build lipprof.AMOS(params, first=..., second=...)."
        )
    sides = {unit.choice for unit in optimizer._assignment.units if unit.movable}
    if len(sides) > 1:
        raise ConfigError(
            "The tensors that may switch are on both sides already; a contest is between all "
            "on the one and all on the other. Start it with a new AMOS."
        )
    here = sides.pop()
    return [
        Entry(side, how)
        for how in ((False, True) if calibrate else (False,))
        for side in (here, here.other)
    ]


def _check_profiler(profiler: Profiler, optimizer: AMOS, calibrate: bool) -> None:
    if profiler.optimizer is not optimizer:
        raise ConfigError("`profiler` is attached to another optimizer than this AMOS.")
    if calibrate and profiler.calibration is not None:
        raise ConfigError(
            "Both the contest and its profiler were asked to calibrate. Within a contest "
            "each optimizer has a learning rate of its own to find: attach the profiler "
            "without calibrate=True."
        )
