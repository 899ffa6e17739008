"""A callback of Hugging Face's ``Trainer``: the profiler over ``Trainer.train``."""

from typing import Any

from lipprof.profiler.trainer import TrainerProfiler
from lipprof.record.extras import require


class LipprofCallback(TrainerProfiler, require("transformers", "transformers").TrainerCallback):
    """Profiles the loss surface along ``Trainer.train``; arguments as of ``TrainerProfiler``.

    ``Trainer`` restores its step when it resumes from a checkpoint.
    """

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
        if state.is_world_process_zero:
            unwrapped = getattr(optimizer, "optimizer", optimizer)  # what Accelerate wrapped
            self._begin(model, [unwrapped], state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Finish the run file."""
        self._end()
