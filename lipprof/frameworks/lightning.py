"""A Lightning callback: the profiler over ``Trainer.fit``, for both of Lightning's import names.

``Trainer`` calls ``training_step`` and not the module, so the model that is profiled is the
outermost that the first training batch calls (``lipprof.profiler.launching.launcher``).
"""

import sys
from importlib.util import find_spec
from typing import Any

from lipprof.frameworks.trainer import TrainerProfiler
from lipprof.profiler.state import State
from lipprof.record.extras import require

_NAMES = ("lightning.pytorch", "pytorch_lightning")


def _bases() -> tuple[type[Any], ...]:
    """The ``Callback`` of every Lightning that is in use, or else of the first installed."""
    used = [name for name in _NAMES if name in sys.modules]
    installed = [name for name in _NAMES if find_spec(name.partition(".")[0])]
    names = used or installed[:1] or _NAMES[:1]
    return tuple(require(name, "lightning").Callback for name in names)


class LipprofCallback(TrainerProfiler, *_bases()):
    """Profiles the loss surface along ``Trainer.fit``; arguments as of ``TrainerProfiler``."""

    _reached: State | None = None  # by the checkpoint, or by training before

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach, or wait for the model's first forward."""
        if trainer.is_global_zero:
            self._begin(pl_module, trainer.optimizers, self._reached)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Finish the run file."""
        self._finish()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Finish the run file."""
        self._finish()

    def state_dict(self) -> dict[str, Any]:
        """That of the profiler, for the checkpoint; empty before there is one."""
        return self._state or self._reached or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was written."""
        self._reached = state_dict or None

    def _finish(self) -> None:
        self._reached = self._state or self._reached
        self._end()
