"""The run file of a profiler: what its header says, and where a resumed one goes on."""

from pathlib import Path

import torch
from torch import nn

from lipprof.curvature import ParameterView
from lipprof.errors import ConfigError
from lipprof.record import RunHeader, RunWriter, open_run
from lipprof.settings import Settings


def check_pairs(settings: Settings, view: ParameterView) -> None:
    """Refuse more eigenpairs than there are parameters.

    Args:
        settings: say how many pairs.
        view: the profiled parameters.

    Raises:
        ConfigError: there are fewer parameters.
    """
    if settings.top + settings.bottom > view.n:
        raise ConfigError(
            f"top={settings.top} + bottom={settings.bottom} eigenpairs were asked for, but only "
            f"n={view.n} parameters are profiled. Pass smaller top= and bottom=."
        )


def header_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    view: ParameterView,
    settings: Settings,
    *,
    source: str,
    probe: str,
) -> RunHeader:
    """Describe a run.

    Args:
        model: the model.
        optimizer: its optimizer.
        view: the profiled parameters.
        settings: all of them are recorded.
        source: where the measured loss comes from.
        probe: what it is evaluated on.

    Returns:
        The header.
    """
    return RunHeader(
        tensor_names=view.names,
        tensor_numel=view.numel,
        top=settings.top,
        bottom=settings.bottom,
        model_class=type(model).__name__,
        optimizer_class=type(optimizer).__name__,
        device=str(view.device),
        precision=str(view.dtype).removeprefix("torch."),
        source=source,
        probe=probe,
        settings=settings.to_toml(),
        calibrated=settings.calibrate,
    )


def open_writer(
    path: str | Path, header: RunHeader, *, swmr: bool, resume: bool
) -> tuple[RunWriter, int]:
    """Create a run file, or open one to append to.

    Args:
        path: the file.
        header: of this run.
        swmr: see ``RunWriter``.
        resume: append where the file exists.

    Returns:
        The writer, and the first iteration that the file does not have yet.
    """
    if not (resume and Path(path).is_file()):
        return RunWriter(path, header, swmr=swmr), 0
    with open_run(path) as run:
        first = int(run["iteration"][-1]) + 1 if len(run) else 0
    return RunWriter.resume(path, header, swmr=swmr), first
