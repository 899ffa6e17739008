"""What the callbacks of frameworks have in common: a launcher for as long as a trainer trains."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lipprof.curvature import LossClosure, process_count
from lipprof.profiler.launching.launcher import Launcher
from lipprof.profiler.state import State
from lipprof.settings import load_settings

_log = logging.getLogger("lipprof")


class TrainerProfiler:
    """Profiles the loss surface along a framework's training; on rank 0.

    Args:
        path: the run file; resuming from a checkpoint appends to it.
        loss: a closure over a fixed probe, given the model; default: the training step's own.
        profile: name of a settings profile, or path of a TOML file.
        settings: fields of ``lipprof.Settings``.
    """

    def __init__(
        self,
        path: str | Path = "run.h5",
        *,
        loss: LossClosure | None = None,
        profile: str | Path | None = None,
        **settings: Any,
    ) -> None:
        self.path, self.loss = path, loss
        self.settings = load_settings(profile, **settings)
        self._launcher: Launcher | None = None

    @property
    def _state(self) -> State | None:
        """Of the profiler; None where none is attached."""
        profiler = None if self._launcher is None else self._launcher.profiler
        return None if profiler is None else profiler.state_dict()

    def _begin(
        self, model: nn.Module, optimizers: Iterable[Optimizer], state: State | None
    ) -> None:
        """Attach to the first optimizer, or wait for a model's first forward.

        Args:
            model: what the trainer trains.
            optimizers: its optimizers.
            state: of the profiler, where training goes on from a checkpoint.
        """
        if process_count() > 1:
            _log.warning(
                "lipprof: nothing is profiled: this callback does not profile one of several "
                "processes. Use lipprof attach, or lipprof.attach on rank 0."
            )
            return
        self._launcher = Launcher(
            self.path,
            self.settings,
            lambda line: _log.warning("lipprof: %s", line),
            state=state,
        )
        for optimizer in optimizers:
            if self.loss is not None:
                self._launcher.attach(model, optimizer, loss=self.loss)
                return
            self._launcher.consider(optimizer)

    def _end(self) -> None:
        """Finish the run file."""
        if self._launcher is not None:
            self._launcher.finish()
            self._launcher = None
