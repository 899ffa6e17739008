"""A Lightning callback: the profiler over ``Trainer.fit``, for both of Lightning's import names.

``Trainer`` calls ``training_step`` and not the module, so the model that is profiled is the
outermost that the first training batch calls (``lipprof.profiler.launcher``).
"""

import logging
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lipprof.curvature import LossClosure
from lipprof.errors import MissingExtraError
from lipprof.profiler.launcher import Launcher
from lipprof.settings import load_settings

_log = logging.getLogger("lipprof")
_NAMES = ("lightning.pytorch", "pytorch_lightning")


def _bases() -> tuple[type[Any], ...]:
    """The ``Callback`` of every Lightning that is in use, or else of the first installed."""
    used = [name for name in _NAMES if name in sys.modules]
    installed = [name for name in _NAMES if find_spec(name.partition(".")[0])]
    if not installed:
        raise MissingExtraError(
            "Lightning is not installed. Run `pip install 'lipprof[lightning]'`."
        )
    return tuple(import_module(name).Callback for name in used or installed[:1])


class LipprofCallback(*_bases()):
    """Profiles the loss surface along ``Trainer.fit``; on rank 0.

    Args:
        path: the run file; resuming from a checkpoint appends to it.
        loss: a closure over a fixed probe, given the LightningModule; default: the training
            step's own.
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
        self._iteration = 0
        self._launcher: Launcher | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach, or wait for the model's first forward."""
        if not trainer.is_global_zero:
            return
        self._launcher = Launcher(
            self.path,
            self.settings,
            lambda line: _log.warning("lipprof: %s", line),
            iteration=self._iteration,
        )
        if self.loss is not None:
            self._launcher.attach(pl_module, trainer.optimizers[0], loss=self.loss)
            return
        for optimizer in trainer.optimizers:
            self._launcher.consider(optimizer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Finish the run file."""
        self._finish()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Finish the run file."""
        self._finish()

    def state_dict(self) -> dict[str, Any]:
        """The iteration, for the checkpoint."""
        if self._launcher is not None and self._launcher.profiler is not None:
            self._iteration = self._launcher.profiler.iteration
        return {"iteration": self._iteration}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at a checkpoint's iteration."""
        self._iteration = state_dict["iteration"]

    def _finish(self) -> None:
        if self._launcher is not None:
            self._launcher.finish()
            self._iteration = self.state_dict()["iteration"]
            self._launcher = None
