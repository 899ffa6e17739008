"""Run files as files: who may write one, how HDF5 opens it, and every failure as one clear line.

One writer at a time is enforced by ``filelock`` on ``<path>.lock``: two writers corrupt an HDF5
file (h5py#1804), and HDF5's own lock is released when SWMR starts.  The kernel drops the lock when
a writer is killed, so a lock file that was left behind means nothing by itself.
"""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
from filelock import BaseFileLock, FileLock, Timeout

from lipprof.errors import RunFileError
from lipprof.record.marked import SIGNATURE, UnmarkedFile, is_marked

logger = logging.getLogger("lipprof")

SWMR_LIBVER = ("v110", "v110")  # the oldest format with SWMR: older netCDF libraries read it too
NO_LOCKS = {errno.ENOLCK, 524}  # 524: ENOTSUPP, as NFS returns it
LOCK_SECONDS = 0.3  # patience with readers, who try the lock for a moment


class RunLock:
    """The right to write one run file, held from construction to ``release``.

    Args:
        path: the run file; the lock is ``<path>.lock`` beside it.

    Raises:
        RunFileError: another live writer holds it, or the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = lock_path(path)
        # Not thread-local: a writer may be closed by another thread than the one that opened it.
        self._lock: BaseFileLock = FileLock(self.path, thread_local=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            raise RunFileError(
                f"{path} is being written by another live process (it holds {self.path.name}). "
                "Choose another file, or stop that run first."
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise RunFileError(f"Cannot write {path}: {describe(error)}.") from error
            logger.warning(
                "The file system of %s has no locks: make sure that only one run writes it.", path
            )

    def release(self) -> None:
        """Give the lock back and remove its file.  Twice is harmless."""
        if self._lock.is_locked:
            self.path.unlink(missing_ok=True)
            self._lock.release()


def lock_path(path: Path) -> Path:
    """Return the lock file that belongs to the run file ``path``."""
    return path.with_name(path.name + ".lock")


def describe(error: BaseException) -> str:
    """Return the first line of an error; HDF5 appends a dump to some of its own."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return (str(error) or type(error).__name__).splitlines()[0]


@contextmanager
def failing_as(problem: str) -> Iterator[None]:
    """Turn whatever h5py raises about a file into ``RunFileError(problem: its first line)``.

    A damaged or hostile file makes h5py raise nearly every builtin exception.

    Yields:
        Nothing.

    Raises:
        RunFileError: the block raised.
    """
    try:
        yield
    except RunFileError:
        raise
    except Exception as error:
        raise RunFileError(f"{problem}: {describe(error)}.") from error


def open_hdf5(path: Path, mode: str, **kwargs: Any) -> h5py.File:
    """Open with HDF5, without its lock where the file system has none.

    Args:
        path: the file.
        mode: of ``h5py.File``.
        kwargs: further arguments of ``h5py.File``.

    Returns:
        The open file.

    Raises:
        OSError: whatever else HDF5 says.
    """
    try:
        return h5py.File(path, mode, **kwargs)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning(
            "The file system of %s has no locks: opened without. Prefer swmr=False there.",
            path,
        )
        return h5py.File(path, mode, locking="best-effort", **kwargs)


def open_for_reading(path: Path, *, live: bool) -> h5py.File:
    """Open a run file that is finished, being written, or left by a killed writer.

    Args:
        path: the file.
        live: whether a writer has it.

    Returns:
        The open file; nothing about its content is checked yet.

    Raises:
        RunFileError: missing, a folder, not HDF5, damaged, or locked by its writer.
    """
    try:
        if not is_marked(path):
            return open_hdf5(path, "r")
        if live:
            return open_hdf5(path, "r", swmr=True)
        return h5py.File(UnmarkedFile(path), "r")
    except Exception as error:
        raise RunFileError(_why_unreadable(path, error)) from error


def has_writer(path: Path) -> bool:
    """Tell whether a live writer holds the lock of ``path``; its file alone says nothing.

    Returns:
        True also where that cannot be found out.
    """
    if not lock_path(path).exists():
        return False
    lock = FileLock(lock_path(path))
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"There is no run file {path}."
    if path.is_dir():
        return f"{path} is a folder; expected a run file inside it, such as {path / 'run.h5'}."
    if isinstance(error, BlockingIOError):
        return (
            f"{path} is open for writing by a run with swmr=False or by another program. It can be "
            "read when that closes it; a run with swmr=True can be followed live."
        )
    if isinstance(error, PermissionError):
        return f"{path} cannot be read: {describe(error)}."
    with failing_as(f"{path} cannot be read"), path.open("rb") as file:
        signature = file.read(len(SIGNATURE))
    if signature != SIGNATURE:
        return f"{path} is not an HDF5 file."
    return f"{path} is damaged or truncated: {describe(error)}."


def move_aside(path: Path) -> None:
    """Rename an existing run file to the first free of run.1.h5, run.2.h5, ... and say so.

    Args:
        path: the file; nothing happens if there is none.

    Raises:
        RunFileError: it is not a file, or cannot be renamed.
    """
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise RunFileError(f"{path} exists and is not a file; choose another name for the run.")
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.stem}.{number}{path.suffix}")):
        number += 1
    with failing_as(f"Cannot move the existing {path} aside"):
        path.rename(aside)
    logger.warning("%s existed: moved to %s.", path, aside.name)
