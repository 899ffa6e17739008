"""A callback of Hugging Face's ``Trainer``: the profiler over ``Trainer.train``.

``Trainer`` keeps the state of callbacks in JSON, which has no tensors; so the profiler's is a file
beside the others of a checkpoint.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from lipprof.frameworks.trainer import TrainerProfiler
from lipprof.profiler.state import State
from lipprof.record.extras import require

_log = logging.getLogger("lipprof")


class LipprofCallback(TrainerProfiler, require("transformers", "transformers").TrainerCallback):
    """Profiles the loss surface along ``Trainer.train``; arguments as of ``TrainerProfiler``.

    A checkpoint gets a file ``lipprof.pt`` (not with ``save_only_model``); resumed from one that
    has none, or lies elsewhere than in ``output_dir``, the averages start anew, which is said.
    """

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,  # noqa: ARG002
        *,
        model: Any,
        optimizer: Any,
        **_: Any,
    ) -> None:
        """Attach, or wait for the model's first forward."""
        if state.is_world_process_zero:
            unwrapped = getattr(optimizer, "optimizer", optimizer)  # what Accelerate wrapped
            self._begin(model, [unwrapped], _saved(args, state))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Write the profiler's state into the checkpoint."""
        path, own = _path(args, state), self._state
        if own is None or args.save_only_model or not path.parent.is_dir():
            return
        try:
            torch.save(own, path)
        except (OSError, RuntimeError) as error:  # torch's zip writer raises the latter
            _log.warning("lipprof: %s cannot be written and training goes on. %s", path, error)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Finish the run file."""
        self._end()


def _path(args: Any, state: Any) -> Path:
    """Where a checkpoint of ``Trainer`` has the profiler's state."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "lipprof.pt"


def _saved(args: Any, state: Any) -> State | None:
    """The profiler's state where training resumes; None at its beginning."""
    if state.global_step == 0:
        return None
    path = _path(args, state)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - of many kinds, for damaged files too
        _log.warning(
            "lipprof: %s cannot be read, so averages of L and the advice's dwell start anew at "
            "iteration %d. %s",
            path,
            state.global_step,
            error,
        )
    return {"iteration": state.global_step}
