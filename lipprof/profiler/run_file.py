"""The run file of a profiler: its header, where a resumed one goes on, and writes that may fail."""

import logging
import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from lipprof.curvature import ParameterView, Partition, plain_model
from lipprof.errors import ConfigError, RunFileError
from lipprof.optim import AMOS, ELMO, FOSI
from lipprof.record import (
    CalibrationReading,
    Measurement,
    RecordedTrial,
    RunHeader,
    RunWriter,
    open_run,
)
from lipprof.settings import Settings

_log = logging.getLogger("lipprof")


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
    partition: Partition,
    settings: Settings,
    *,
    source: str,
    probe: str,
    blocks: tuple[str, ...] = (),
) -> RunHeader:
    """Describe a run.

    Args:
        model: the model.
        optimizer: its optimizer.
        view: the profiled parameters.
        partition: their units.
        settings: all of them are recorded.
        source: where the measured loss comes from.
        probe: what it is evaluated on.
        blocks: names of the diagonal blocks that are measured.

    Returns:
        The header.
    """
    rule = optimizer.rule if isinstance(optimizer, ELMO | FOSI) else None
    return RunHeader(
        tensor_names=partition.names,
        tensor_numel=partition.numel,
        unit_kind=partition.kind,
        top=settings.top,
        bottom=settings.bottom,
        model_class=type(plain_model(model)).__name__,
        optimizer_class=type(optimizer).__name__,
        device=str(view.device),
        precision=str(view.dtype).removeprefix("torch."),
        source=source,
        probe=probe,
        blocks=blocks,
        settings=settings.to_toml(),
        calibrated=settings.calibrate or isinstance(optimizer, AMOS),  # by a contest
        contested=isinstance(optimizer, AMOS),
        pair_rule="" if rule is None else str(rule),
    )


class Recording:
    """Writes measurements for as long as the file takes them; then says so once, and lets go.

    Args:
        path: the file.
        header: of this run.
        swmr: see ``RunWriter``.
        resume: append where the file exists.
        strict: raise what goes wrong.

    Raises:
        RunFileError: the file cannot be created or resumed.
    """  # noqa: DOC502 - raised by the writer

    def __init__(
        self, path: str | Path, header: RunHeader, *, swmr: bool, resume: bool, strict: bool
    ) -> None:
        self.path = Path(path)
        self._first = 0  # the first iteration that the file has no measurement of
        self._newest: dict[type, tuple[int, ...]] = {}  # place in each table beside them
        self._strict = strict
        self._writer: RunWriter | None
        if resume and self.path.is_file():
            with open_run(path) as run:
                self._first = int(run["iteration"][-1]) + 1 if len(run) else 0
                for row in (*run.calibration[-1:], *run.trials[-1:]):
                    self._newest[type(row)] = row.place
            self._writer = RunWriter.resume(path, header, swmr=swmr)
        else:
            self._writer = RunWriter(path, header, swmr=swmr)
        self._identity = _identity(self.path)

    def append(self, row: Measurement | CalibrationReading | RecordedTrial) -> None:
        """Write a row, of measurements or beside them, that the file does not have yet."""
        if self._writer is None:
            return
        try:
            if isinstance(row, Measurement):
                if row.iteration < self._first:
                    return
                self._writer.append(row)
                self._first = row.iteration + 1
            else:
                if row.place <= self._newest.get(type(row), ()):
                    return
                self._writer.append_aside(row)
                self._newest[type(row)] = row.place
            if _identity(self.path) != self._identity:
                raise RunFileError(f"{self.path} was removed or replaced while it was written.")
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Finish the file.  Twice is harmless."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if self._strict:
            raise error
        _log.error(
            "lipprof: the run file cannot be written any more and recording stops; training goes "
            "on. What is in the file stays readable. %s",
            error,
        )
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(Exception):
                writer.close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
