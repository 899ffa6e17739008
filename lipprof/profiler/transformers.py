"""A callback of Hugging Face's ``Trainer``: the profiler over ``Trainer.train``."""

import logging
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lipprof.curvature import LossClosure
from lipprof.errors import MissingExtraError
from lipprof.profiler.launcher import Launcher
from lipprof.settings import load_settings

_log = logging.getLogger("lipprof")


def _base() -> type[Any]:
    """Transformers' ``TrainerCallback``."""
    if find_spec("transformers") is None:
        raise MissingExtraError(
            "Transformers is not installed. Run `pip install 'lipprof[transformers]'`."
        )
    return import_module("transformers").TrainerCallback


class LipprofCallback(_base()):
    """Profiles the loss surface along ``Trainer.train``; on rank 0.

    ``Trainer`` restores its step when it resumes from a checkpoint; the run file is appended to.

    Args:
        path: the run file.
        loss: a closure over a fixed probe, of the model; default: the training step's own.
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

    def on_train_begin(
        self,
        args: Any,  # noqa: ARG002
        state: Any,
        control: Any,  # noqa: ARG002
        *,
        model: Any,
        optimizer: Any,
        **_: Any,
    ) -> None:
        """Attach, or wait for the model's first forward."""
        if not state.is_world_process_zero:
            return
        self._launcher = Launcher(
            self.path,
            self.settings,
            lambda line: _log.warning("lipprof: %s", line),
            iteration=state.global_step,
        )
        optimizer = getattr(optimizer, "optimizer", optimizer)  # what Accelerate wrapped
        if self.loss is not None:
            self._launcher.attach(model, optimizer, loss=self.loss)
        else:
            self._launcher.consider(optimizer)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Finish the run file."""
        if self._launcher is not None:
            self._launcher.finish()
            self._launcher = None
