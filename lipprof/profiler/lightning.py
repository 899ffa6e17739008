"""A Lightning callback: the profiler over ``Trainer.fit``, for both of Lightning's import names.

``Trainer`` calls ``training_step`` and not the module, so the model that is profiled is the
outermost that the first training batch calls (``lipprof.profiler.launcher``).
"""

import sys
from importlib.util import find_spec
from typing import Any

from lipprof.profiler.trainer import TrainerProfiler
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

    _iteration = 0  # of the checkpoint, or reached before

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach, or wait for the model's first forward."""
        if trainer.is_global_zero:
            self._begin(pl_module, trainer.optimizers, self._iteration)

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
        self.state_dict()  # the iteration reached, before the launcher goes
        self._end()
