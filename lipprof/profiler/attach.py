"""``lipprof.attach``: one line in an existing loop; the loop stays as it is.

Two hooks on the optimizer are all that stays: before a step, to measure when one is due; after it,
to count.  An iteration that is not measured costs one evaluation of the schedule.
"""

import atexit
import logging
import os
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lipprof.advice import Recommendation
from lipprof.curvature import (
    LossClosure,
    LossHessian,
    ParameterView,
    Partition,
    twice_differentiable,
    uncompiled,
    undisturbed,
)
from lipprof.errors import AttachError
from lipprof.linalg.inner import norm
from lipprof.profiler.budget import Budget, Work
from lipprof.profiler.calibration import Calibration, calibration_of
from lipprof.profiler.estimates.noise import BatchNoise
from lipprof.profiler.following import check_following, with_units
from lipprof.profiler.lending import Lender
from lipprof.profiler.measure import Observer
from lipprof.profiler.memory import MemoryShare, kept_vectors
from lipprof.profiler.replicas import own_replica
from lipprof.profiler.run_file import Recording, check_pairs, header_of
from lipprof.profiler.schedule import Schedule, of_settings
from lipprof.profiler.sources.hooks import after_closure
from lipprof.profiler.sources.probe import Probe
from lipprof.profiler.sources.source import ClosureSource, Source
from lipprof.profiler.sources.step_source import StepSource
from lipprof.profiler.state import ProfilerState
from lipprof.record import ENGINES, SOURCES, CalibrationReading, Measurement, RecordedTrial
from lipprof.settings import Settings, load_settings

_log = logging.getLogger("lipprof")
_attached: "weakref.WeakSet[torch.optim.Optimizer]" = weakref.WeakSet()


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    path: str | Path = "run.h5",
    *,
    loss: LossClosure | None = None,
    probe: Sequence[Any] | None = None,
    noise: Sequence[Any] | None = None,
    schedule: Schedule | None = None,
    profile: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> "Profiler":
    """Profile the loss surface along a training loop.

    Args:
        model: its parameters that require gradients and belong to ``optimizer`` are profiled.
        optimizer: whose completed steps are the iterations.  An ``AMOS`` follows the live
            recommendation; one with ``observe_curvature`` (Sophia) is lent the Hessian's diagonal,
            one with ``observe_eigenspaces`` (ELMO, FOSI) the converged eigenpairs and their L.
        path: the run file.  A file that exists is moved aside, never overwritten.
        loss: ``loss(model) -> scalar`` over a fixed probe batch: a series free of minibatch noise.
            Without it the training step's own loss is measured, by a replay of its forward.
        probe: microbatches for ``loss(model, batch)``, weighted by their sizes.
        noise: further batches for ``loss(model, batch)``, two or more: how far the eigenvalues
            spread over them, and how much of their drift that spread explains, is recorded.
        schedule: any function from the iteration to whether it is measured; wins over ``every``.
        profile: name of a profile (``lipprof profiles list``) or path of a TOML file.
        resume: append to a run file that exists what it does not have yet.  With the state of the
            checkpoint (``load_state_dict``) everything goes on as if training had not stopped.
        settings: fields of ``lipprof.Settings``, such as ``every=``, ``top=``, ``bottom=``,
            ``tol=``, ``strict=``; they win over the profile.

    Returns:
        The profiler; ``close()`` it after training, or use it as a context manager.

    Raises:
        ConfigError: an invalid setting, a model without parameters to profile, or an ``AMOS`` that
            could not follow: without names, of other parameters or of other units.
        AttachError: a profiler is attached to this optimizer already; or this is one of several
            processes that cannot be profiled, see ``lipprof.profiler.replicas``.
    """
    return Profiler(
        model,
        optimizer,
        path,
        Probe(loss, probe, noise),
        schedule=schedule,
        settings=load_settings(profile, **settings),
        resume=resume,
    )


class Profiler:
    """A profiler at work; made by ``attach``."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        path: str | Path,
        probe: Probe,
        *,
        schedule: Schedule | None,
        settings: Settings,
        resume: bool = False,
        announce: Callable[[str], None] | None = None,
    ) -> None:
        if optimizer in _attached:
            raise AttachError(
                "A profiler is attached to this optimizer already. Close it first: prof.close()."
            )
        model = own_replica(model, optimizer, settings)
        self.view = ParameterView.of(model, optimizer)
        settings = with_units(settings, optimizer)
        self.partition = Partition.of_view(self.view, settings.units or "tensor")
        self.model, self.optimizer, self.settings = model, optimizer, settings
        check_pairs(settings, self.view)
        check_following(optimizer, self.partition, settings)
        self.iteration = 0
        self._process = os.getpid()  # a forked copy leaves the run file alone
        self.last: Measurement | None = None
        self._schedule = schedule or of_settings(settings)
        pairs = settings.top + settings.bottom
        memory = MemoryShare(settings.memory_limit, self.view, pairs, kept_vectors(settings))
        closure, further = probe.of(model, settings), None
        self._source: Source = (
            StepSource(model, self.view, thrice=settings.exact)
            if closure is None
            else ClosureSource(closure, self.view, settings, memory.for_products)
        )
        if closure is not None and probe.noise is not None:
            further = BatchNoise(settings, closure, self.view, probe.noise, memory.for_products)
        self._observer = Observer(
            self.view, self.partition, optimizer, settings, memory, closure, further
        )
        self._budget = Budget(settings, len(self._observer.block_names))
        self._work: Work | None = None
        self._unrecorded_s = 0.0  # spent on finding out what measurements cost
        self._pending: Measurement | None = None
        self._lender = Lender(optimizer, self.view, self.partition)
        self._announce: Callable[[str], None] | None = announce or _log.info
        self._growth_told, self._failed_because = False, ""
        about: dict[str, Any] = {"source": self._source.name, "probe": probe.describe(settings)}
        about["blocks"] = self._observer.block_names
        header = header_of(model, optimizer, self.view, self.partition, settings, **about)
        self.calibration = calibration_of(optimizer, self.view, closure, settings, self.note)
        parts = {"observer": self._observer, "source": self._source, "budget": self._budget}
        self._state = ProfilerState(self.partition, settings, **parts, calibration=self.calibration)
        self._recording = Recording(
            path, header, swmr=settings.swmr, resume=resume, strict=settings.strict
        )
        self.calibrated_by(self.calibration)
        if self.calibration is not None:
            self.calibration.install()
        self._hooks = [
            optimizer.register_step_pre_hook(uncompiled(self._before_step)),
            optimizer.register_step_post_hook(uncompiled(self._after_step)),
        ]
        _attached.add(optimizer)
        atexit.register(self.close)
        self._due = False
        self._look_ahead()

    @property
    def recommendation(self) -> Recommendation | None:
        """The newest recommendation; None before the first measurement."""
        return self._observer.recommendation

    def state_dict(self) -> dict[str, Any]:
        """Return, between two steps, what it takes to go on exactly; see ``profiler.state``."""
        return {"iteration": self.iteration} | self._state.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; by its ``iteration`` alone, with averages anew.

        What the run file has already is measured again, for what rests on it, but not written.

        Raises:
            ConfigError: it is of other units or eigenpairs.
        """  # noqa: DOC502 - raised by the state
        self._state.load_state_dict(state)
        self._flush()
        self._source.disarm()
        self.iteration = int(state["iteration"])
        self._look_ahead()

    def enter_forward(self, arguments: tuple[Any, ...]) -> None:
        """Take in that a forward of the model, just begun, precedes this profiler."""
        if self._due and isinstance(self._source, StepSource):
            self._source.enter_forward(self.model, arguments)

    def measure_if_due(self) -> None:
        """Measure here, between backward and update, where the iteration is scheduled."""
        if self._due:
            self._measure()

    def calibrated_by(self, calibration: Calibration | None) -> None:
        """Take in whose factor is on the learning rate, which measurements tell."""
        self._calibrated_by = calibration

    def stop_leading(self) -> None:
        """Go on to recommend; an AMOS no longer follows."""
        self._lender.leads = False

    def close(self) -> None:
        """Finish the run file and let go of the loop.  May be called again."""
        if os.getpid() != self._process:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self.calibration is not None:
            self.calibration.close()
        self._source.disarm()
        self._flush()
        self._recording.close()
        _attached.discard(self.optimizer)
        atexit.unregister(self.close)

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ the loop

    def _look_ahead(self) -> None:
        self._due = bool(self._schedule(self.iteration))
        if self._due and self._budget.priced:
            self._work = self._budget.plan()
            self._due = self._work is not None
        if self._due:
            self._source.arm()

    def _before_step(
        self, _: torch.optim.Optimizer, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        tried_again = self._pending is not None  # the step that followed it raised
        if not self._due or tried_again or os.getpid() != self._process:
            return None
        if isinstance(self._source, StepSource) or self._observer.candidates is not None:
            changed = after_closure(arguments, keywords, self.measure_if_due)
            if changed is not None:  # the step itself runs forward and backward
                return changed
        self._measure()
        return None

    def _after_step(self, *_: Any) -> None:
        if os.getpid() != self._process:
            return
        if self._pending is not None:
            self._finish()
        self.iteration += 1
        self._look_ahead()

    def _tell_of_new_parameters(self) -> None:
        """Say once that layers were unfrozen, or groups added, after the profiler was attached."""
        now = len(ParameterView.of(self.model, self.optimizer).parameters)
        if now > len(self.view.parameters) and not self._growth_told:
            self._growth_told = True
            _log.warning(
                "lipprof: the optimizer now steps %d tensors of the model; the %d of the time of "
                "attaching stay the profiled ones. Attach again for the others.",
                now,
                len(self.view.parameters),
            )

    def _measure(self) -> None:
        started = time.time(), time.perf_counter() - self._source.preparing_s
        measurement = None
        try:
            measurement = self._spectrum(started[1])
        except Exception as error:
            if self.settings.strict:
                self._source.arm()
                raise
            measurement = self._failure(error)
        except BaseException:  # Ctrl-C, after which a loop may go on
            self._source.arm()
            raise
        self._source.disarm()
        seconds = time.perf_counter() - started[1]
        if measurement is None:
            self._unrecorded_s = seconds
            self._budget.pay(None, seconds)
            return
        self._pending = replace(
            measurement,
            time=started[0],
            seconds=seconds + self._unrecorded_s,
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
        )
        self._unrecorded_s = 0.0
        self._budget.pay(self._work, seconds)
        self._report_source(self._pending)

    def _spectrum(self, started: float) -> Measurement | None:
        """Measure; None where the budget, having been told the price, has no room yet."""
        with undisturbed(self.model, training=self._mode), twice_differentiable(self.model):
            operator = self._source.operator()
            if not self._budget.priced:
                self._price(operator, started)
            if self._work is None:
                return None
            measurement = self._observer.measure(
                operator, self.iteration, self._work, self._source.products, self._source.name
            )
            del operator
        self._tell_of_new_parameters()
        self._lender.lend(self._observer)
        return measurement

    def _report_source(self, measurement: Measurement) -> None:
        """Say once, at the first measurement with a spectrum, where it came from."""
        if self._announce is None or not measurement.num_matvecs:
            return
        self._announce(
            f"measured by {SOURCES[measurement.source]}, {ENGINES[measurement.engine]} products: "
            f"{measurement.num_matvecs} Hessian-vector products in {measurement.seconds:.2g} s."
        )
        self._announce = None

    def _price(self, operator: LossHessian, started: float) -> None:
        """Time what a measurement is made of, and plan it."""
        building = started
        if isinstance(self._source, ClosureSource):  # the first also chose and checked the engine
            building = time.perf_counter()
            operator = self._source.operator()
        built = time.perf_counter()
        norm(operator.matvec(operator.gradient())).item()
        now = time.perf_counter()
        self._budget.price(build=built - building, matvec=now - built)
        self._work = self._budget.plan()

    @property
    def _mode(self) -> bool | None:
        """Train flag for a closure; the replayed step keeps the loop's own."""
        return None if isinstance(self._source, StepSource) else self.settings.mode == "train"

    def _failure(self, error: Exception) -> Measurement:
        self._source.failed(error)
        reason = f"{type(error).__name__}: {error}"
        if reason != self._failed_because:
            _log.warning(
                "lipprof: the measurement at iteration %d failed and training goes on. %s",
                self.iteration,
                reason,
            )
        self._failed_because = reason
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        live = isinstance(self._source, StepSource)
        return self._observer.outline(self.iteration, reason, gradient=live)

    def _finish(self) -> None:
        """Complete the pending measurement with the step just taken, and write it."""
        assert self._pending is not None
        measurement, self._pending = self._pending, None
        try:
            measurement = self._observer.with_step(measurement)
        except Exception as error:
            if self.settings.strict:
                raise
            _log.warning("lipprof: the step could not be projected. %s", error)
        if self._calibrated_by is not None:
            rate = float(self.optimizer.param_groups[0]["lr"]) * self._calibrated_by.factor
            measurement = replace(measurement, learning_rate=rate)
        self._write(self._lender.with_choices(measurement))

    def _flush(self) -> None:
        """Write a measurement whose step never came."""
        if self._pending is not None:
            measurement, self._pending = self._pending, None
            self._write(measurement)

    def _write(self, measurement: Measurement) -> None:
        self.last = measurement
        self._recording.append(measurement)

    def note(self, row: CalibrationReading | RecordedTrial) -> None:
        """Record what was decided beside measurements, and count its cost as theirs."""
        self._budget.pay(None, row.seconds)
        self._recording.append(row)
