"""Several runs side by side: on which axis, at which common point, and in what they differ.

Runs are compared where all of them have been: at the last iteration or time that every run has
reached, or at the lowest loss.  Nothing is interpolated: each run shows its own measurement there,
the last before that point, or the first that brought the loss down to it.
"""

import enum
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lipprof.errors import ConfigError, RunFileError
from lipprof.record import Run
from lipprof.report import derived
from lipprof.report.formats import duration, number, printable
from lipprof.report.library import LeftOut, find_runs, open_readable, short_names
from lipprof.report.summary import identity

VERSIONS = {"lipprof": "lipprof_version", "torch": "torch_version"}


class By(enum.StrEnum):
    """What runs are aligned by."""

    ITERATION = "iteration"
    TIME = "time"
    LOSS = "loss"

    @property
    def axis_title(self) -> str:
        """Name of the axis, with its unit."""
        return "seconds since the first measurement" if self is By.TIME else self.value


@dataclass(frozen=True, slots=True)
class Difference:
    """Something in which runs differ: one printable value per run."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs and where they stand at the point that all have reached."""

    runs: tuple[Run, ...]
    names: tuple[str, ...]
    by: By
    common: float  # on the axis; NaN: there is no point that all have reached
    positions: tuple[int | None, ...]  # of each run's measurement there; None: it has none
    settings: tuple[Difference, ...]
    tensors: tuple[Difference, ...]  # sizes; "" where a run has no such tensor
    left_out: tuple[LeftOut, ...]


def compare(runs: Sequence[Run], by: By, left_out: Sequence[LeftOut] = ()) -> Comparison:
    """Compare runs.

    Args:
        runs: at least one.
        by: what to align them by.
        left_out: files that could not be read.

    Returns:
        The comparison; runs without a measurement that succeeded do not decide the common point.
    """
    reached = [reach for run in runs if not np.isnan(reach := _reach(run, by))]
    common = np.nan
    if reached:
        common = max(reached) if by is By.LOSS else min(reached)
    return Comparison(
        runs=tuple(runs),
        names=tuple(short_names([run.path for run in runs])),
        by=by,
        common=common,
        positions=tuple(_position(run, by, common) for run in runs),
        settings=tuple(_differing([_settings(run) for run in runs])),
        tensors=tuple(_differing([_sizes(run) for run in runs])),
        left_out=tuple(left_out),
    )


def compare_files(places: Sequence[Path], by: str, stack: ExitStack) -> Comparison:
    """Compare run files; those that cannot be read are left out and named.

    Args:
        places: files, or folders of them.
        by: ``iteration``, ``time`` or ``loss``.
        stack: closes the runs.

    Returns:
        The comparison.

    Raises:
        ConfigError: another ``by``.
        RunFileError: there is no run among them.
    """
    if by not in list(By):
        raise ConfigError(f"Got --by {by}; expected {', '.join(By)}.")
    runs, left_out = open_readable(find_runs(places), stack)
    if not runs:
        reasons = " ".join(out.reason for out in left_out[:3])
        where = ", ".join(str(place) for place in places)
        raise RunFileError(reasons or f"There is no run file (*.h5) in {where}.")
    return compare(runs, By(by), left_out)


def axis(run: Run, by: By) -> derived.Floats:
    """Where each measurement of a run lies on the axis that runs are aligned by, (M,)."""
    if by is By.ITERATION:
        return run["iteration"].astype(np.float64)
    if by is By.LOSS:
        return run["loss"]
    known = run["time"][np.isfinite(run["time"])]
    return run["time"] - (known[0] if known.size else np.nan)


def sentences(comparison: Comparison) -> list[str]:
    """Say where the runs are compared, which is lowest and which is flattest there."""
    if np.isnan(comparison.common):
        return ["No run has a measurement that succeeded: there is nothing to compare."]
    point = {
        By.ITERATION: f"iteration {comparison.common:,.0f}, the last that all have reached",
        By.TIME: f"{duration(comparison.common)} after the first measurement, the time that all "
        "have run",
        By.LOSS: f"a loss of {number(comparison.common)}, the lowest that all have reached",
    }[comparison.by]
    lines = [f"Compared at {point}."]
    for label, words in (("loss", "lowest loss"), ("λ largest", "smallest λ at the top end")):
        values = np.array(values_at(comparison, label))
        if np.isfinite(values).sum() > 1 and not (label == "loss" and comparison.by is By.LOSS):
            best = int(np.nanargmin(values))
            whose = f"{comparison.names[best]}, {number(values[best])}"
            lines.append(f"The {words} there is that of {whose}.")
    return lines


def values_at(comparison: Comparison, label: str) -> list[float]:
    """Values of one of ``derived.key_series`` at the common point, NaN where a run has none."""
    values = []
    for run, position in zip(comparison.runs, comparison.positions, strict=True):
        series = derived.key_series(run).get(label)
        if series is None or position is None:
            values.append(np.nan)
        else:
            values.append(float(series.values[position]))
    return values


def _reach(run: Run, by: By) -> float:
    """The farthest point on the axis that a run has come to; NaN where nothing succeeded."""
    x = axis(run, by)[derived.usable(run)]
    x = x[np.isfinite(x)]
    if x.size == 0:
        return np.nan
    return float(x.min() if by is By.LOSS else x.max())


def _position(run: Run, by: By, common: float) -> int | None:
    good = derived.usable(run)
    there = good[axis(run, by)[good] <= common]
    if there.size == 0:
        return None
    return int(there[0] if by is By.LOSS else there[-1])


def _settings(run: Run) -> dict[str, str]:
    versions = {name: printable(run.attrs.get(a, "?")) for name, a in VERSIONS.items()}
    return identity(run) | versions | {k: str(v) for k, v in run.settings.model_dump().items()}


def _sizes(run: Run) -> dict[str, str]:
    sizes = zip(run.tensor_names, run.tensor_numel.tolist(), strict=True)
    return {printable(name): f"{size:,}" for name, size in sizes}


def _differing(described: list[dict[str, str]]) -> list[Difference]:
    names = dict.fromkeys(name for values in described for name in values)
    rows = [Difference(n, tuple(values.get(n, "") for values in described)) for n in names]
    return [row for row in rows if len(set(row.values)) > 1]
