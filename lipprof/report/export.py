"""A run in the formats of other programs: which there are, where each goes, what it needs."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lipprof.errors import ConfigError
from lipprof.record import Run, copy_run
from lipprof.record.tidy import write_csv, write_json, write_parquet
from lipprof.report.images import write_images
from lipprof.report.loggers import write_tensorboard, write_wandb


@dataclass(frozen=True, slots=True)
class Format:
    """What writes it, and whether it is a single file (``suffix``) or a folder of files."""

    write: Callable[[Run, Path], Sequence[Path] | None]
    suffix: str | None = None


FORMATS = {
    "csv": Format(write_csv),
    "parquet": Format(write_parquet),
    "json": Format(write_json, ".json"),
    "netcdf": Format(copy_run, ".nc"),
    "tensorboard": Format(write_tensorboard),
    "wandb": Format(write_wandb),
    "png": Format(partial(write_images, kind="png")),
    "svg": Format(partial(write_images, kind="svg")),
}


def export(run: Run, to: str, out: str | os.PathLike[str] | None = None) -> list[Path]:
    """Write a run in another format.

    Args:
        run: any state of it.
        to: key of ``FORMATS``.
        out: file or folder; None: beside the run, ``run.json`` or ``run-csv/``.

    Returns:
        What was written.

    Raises:
        ConfigError: no such format, or it cannot be written there.
        MissingExtraError: it takes a package that is not installed.
        RunFileError: the run cannot be read.
    """
    if to not in FORMATS:
        raise ConfigError(f"Unknown format {to!r}; known are {', '.join(FORMATS)}.")
    target = FORMATS[to]
    path = Path(out) if out is not None else _beside(run.path, to, target.suffix)
    if path.exists() and path.samefile(run.path):
        raise ConfigError(f"{path} is the run itself; export to another file (--out).")
    try:
        if target.suffix is None:
            path.mkdir(parents=True, exist_ok=True)
        return list(target.write(run, path) or [path])
    except OSError as error:
        raise ConfigError(
            f"Cannot write {error.filename or path}: {error.strerror or error}. Give a place that "
            "you may write to (--out)."
        ) from None


def _beside(run: Path, to: str, suffix: str | None) -> Path:
    return run.with_suffix(suffix) if suffix else run.with_name(f"{run.stem}-{to}")
