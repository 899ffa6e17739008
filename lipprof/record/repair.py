"""Make a file that a killed writer left behind an ordinary one again.

HDF5 marks a file as open for writing and refuses it to everyone but SWMR readers until the mark
is gone; the tool that removes it (h5clear) is not part of h5py.  So the valid rows are copied to a
new file beside the old one, which then takes its place: an interrupted repair changes nothing.
Copied dataset by dataset and not from the schema: variables that this lipprof does not know
survive.  Not by HDF5's own copy, which keeps the old format: SWMR refuses that of swmr=False.
"""

import os
from pathlib import Path
from typing import Any

import h5py

from lipprof.record.checked import is_own_dataset
from lipprof.record.files import SWMR_LIBVER, RunLock, failing_as, open_for_reading, open_hdf5
from lipprof.record.reader import Run, load_run, open_run
from lipprof.record.schema import M

PACKING = 9  # level of gzip, of copies
SCALE_ATTRIBUTES = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST"}  # they hold addresses


def repair(path: str | os.PathLike[str]) -> int:
    """Rewrite a run file so that any program opens it; an intact one stays as good as it was.

    Args:
        path: the file.

    Returns:
        Number of measurements in it.

    Raises:
        RunFileError: a live writer has it, there is no such file, or it is beyond repair.
    """
    path = Path(path)
    open_run(path).close()
    lock = RunLock(path)
    try:
        return rewrite(path)
    finally:
        lock.release()


def rewrite(path: Path, *, swmr: bool = True) -> int:
    """Copy the valid rows of a run file and put the copy in its place.

    Args:
        path: the file; the caller holds its lock.
        swmr: whether SWMR can be started on the result.

    Returns:
        Number of measurements in it.

    Raises:
        RunFileError: it is not a readable run file, or the copy cannot be written.
    """
    with load_run(path, live=False) as run:
        n_valid = len(run)
    copy = path.with_name(path.name + ".repair")
    try:
        with (
            failing_as(f"Cannot rewrite {path}"),
            open_for_reading(path, live=False) as old,
            open_hdf5(copy, "w", libver=SWMR_LIBVER if swmr else None) as new,
        ):
            _copy_rows(old, new, n_valid)
        with failing_as(f"Cannot replace {path}"):
            os.replace(copy, path)
    finally:
        copy.unlink(missing_ok=True)
    return n_valid


def copy_run(run: Run, path: Path) -> None:
    """Write the measurements that a run has by now into a file of their own, valid netCDF-4.

    Compressed, in chunks of all measurements: the run file itself has room for hundreds more.

    Args:
        run: any state of it.
        path: the new file; what was there is replaced.

    Raises:
        RunFileError: the run cannot be read, or the copy cannot be written.
    """
    with (
        failing_as(f"Cannot copy {run.path} to {path}"),
        open_for_reading(run.path, live=run.live) as old,
        open_hdf5(path, "w", libver=SWMR_LIBVER) as new,
    ):
        _copy_rows(old, new, len(run), pack=True)


def _copy_rows(old: Any, new: Any, n_valid: int, *, pack: bool = False) -> None:
    for name, value in old.attrs.items():
        new.attrs[name] = value
    datasets = {name: old[name] for name in old if is_own_dataset(old, name)}
    axes = {name: [_scale(axis) for axis in dataset.dims] for name, dataset in datasets.items()}
    for name, dataset in datasets.items():
        measured = name == M or M in axes[name]
        shape = (n_valid, *dataset.shape[1:]) if measured else dataset.shape
        copy = _create_like(new, dataset, name, shape, pack=pack)
        _copy_values(dataset, copy)
        for attribute, value in dataset.attrs.items():
            if attribute not in SCALE_ATTRIBUTES:
                copy.attrs[attribute] = value
        if dataset.is_scale:
            copy.make_scale(dataset.attrs["NAME"])
    for name, scales in axes.items():
        for axis, scale in enumerate(scales):
            if scale is not None:
                new[name].dims[axis].attach_scale(new[scale])


def _create_like(
    new: Any, dataset: h5py.Dataset, name: str, shape: tuple[int, ...], *, pack: bool
) -> Any:
    """Create with the same properties, also those that h5py's ``create_dataset_like`` invents.

    A fill value that was not set must not become one: netCDF would take every 0 for missing.

    Returns:
        The new dataset, without values and attributes.
    """
    space = dataset.id.get_space()
    if shape != dataset.shape:
        limits = space.get_simple_extent_dims(True) if dataset.chunks else shape
        space = h5py.h5s.create_simple(shape, limits)
    properties = dataset.id.get_create_plist()
    if pack and dataset.chunks:
        properties.set_chunk(tuple(max(length, 1) for length in shape))
        properties.set_shuffle()
        properties.set_deflate(PACKING)
    kind = dataset.id.get_type()
    return h5py.Dataset(h5py.h5d.create(new.id, name.encode(), kind, space, dcpl=properties))


def _scale(axis: Any) -> str | None:
    """Return the name of the dimension of an axis, None where it has none (a scale itself)."""
    return next((scale.name.lstrip("/") for scale in axis.values()), None)


def _copy_values(source: Any, target: Any) -> None:
    if target.shape == ():
        target[()] = source[()]
    elif target.size:
        rows = target.chunks[0] if target.chunks else target.shape[0]
        for start in range(0, target.shape[0], rows):
            block = slice(start, min(start + rows, target.shape[0]))
            target[block] = source[block]
