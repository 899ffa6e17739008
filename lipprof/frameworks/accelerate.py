"""Accelerate: attach to what ``Accelerator.prepare`` returned, and be part of its checkpoints."""

from pathlib import Path
from typing import Any

from torch import nn

from lipprof.errors import AttachError
from lipprof.profiler.attach import Profiler
from lipprof.profiler.attach import attach as attach_profiler


def attach(
    accelerator: Any,
    model: nn.Module,
    optimizer: Any,
    path: str | Path = "run.h5",
    **keywords: Any,
) -> Profiler:
    """Profile a loop that runs under an ``Accelerator``.

    The profiler is registered for checkpointing: after ``accelerator.load_state`` it goes on as if
    training had not stopped.  With ``resume=True`` the run file is appended to.

    Args:
        accelerator: the ``Accelerator``.
        model: as ``prepare`` returned it.
        optimizer: likewise.
        path: the run file.
        keywords: of ``lipprof.attach``.

    Returns:
        The profiler; close it after training.

    Raises:
        AttachError: training runs in several processes.
    """
    if accelerator.num_processes > 1:
        raise AttachError(
            f"Training runs in {accelerator.num_processes} processes, which lipprof does not "
            "profile yet. Attach in a single process."
        )
    unwrapped = getattr(optimizer, "optimizer", optimizer)
    profiler = attach_profiler(model, unwrapped, path, **keywords)
    accelerator.register_for_checkpointing(profiler)
    return profiler
