"""A run as the trackers of experiments have it: TensorBoard's event files, W&B's offline folder.

Both get the series of ``scalars``: every variable on measurements and on pairs, and what the report
derives from them.  The step is the iteration; what was not computed is left out.  Tables per tensor
belong in files (``tidy``): a tracker draws one chart per name.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lipprof.errors import ConfigError
from lipprof.record import VARIABLES, Run
from lipprof.record.extras import require
from lipprof.report import derived

NOT_CHARTED = {"iteration", "time", "reason"}


def scalars(run: Run) -> dict[str, derived.Floats]:
    """Gather the series that are charted.

    Args:
        run: the run.

    Returns:
        ``loss``, ``eigenvalue/top1``, ..., ``lipschitz/positive``, ``lipschitz/negative``,
        ``first_order_share``; each (M,).
    """
    series, labels = {}, {"pair": run.pair_labels, "block": run.block_names}
    for variable in VARIABLES:
        values = run[variable.name] if variable.name not in NOT_CHARTED else np.empty(0)
        if values.dtype.kind in "fi" and variable.axes == ("measurement",) and values.size:
            series[variable.name] = values.astype(np.float64)
        elif variable.axes[1:] and variable.axes[-1] in labels:
            for i, label in enumerate(labels[variable.axes[-1]]):
                series[f"{variable.name}/{label}"] = values[:, i].astype(np.float64)
    positive, negative = derived.lipschitz_by_sign(run)
    series["lipschitz/positive"], series["lipschitz/negative"] = positive.values, negative.values
    series["first_order_share"] = derived.first_order_share(run)
    return series


def write_tensorboard(run: Run, folder: Path) -> list[Path]:
    """Write an event file with TensorBoard's own writer, which needs neither torch nor TensorFlow.

    Args:
        run: the run.
        folder: exists; the log directory.

    Returns:
        The event file.

    Raises:
        MissingExtraError: tensorboard is not installed.
        ConfigError: the folder has event files already, which TensorBoard would mix with these.
    """
    writers = require("tensorboard.summary.writer.event_file_writer", "tensorboard")
    event_pb2 = require("tensorboard.compat.proto.event_pb2", "tensorboard")
    summary_pb2 = require("tensorboard.compat.proto.summary_pb2", "tensorboard")
    if any(folder.glob("events.out.tfevents.*")):
        raise ConfigError(f"{folder} has event files already; export to another folder (--out).")
    writer = writers.EventFileWriter(str(folder))
    for row, values in _rows(run):
        tags = [summary_pb2.Summary.Value(tag=n, simple_value=x) for n, x in values.items()]
        moment = float(run["time"][row])
        event = event_pb2.Event(
            wall_time=moment if np.isfinite(moment) else 0.0,
            step=int(run["iteration"][row]),
            summary=summary_pb2.Summary(value=tags),
        )
        writer.add_event(event)
    writer.close()
    return sorted(folder.glob("events.out.tfevents.*"))


def write_wandb(run: Run, folder: Path) -> list[Path]:
    """Write an offline run of Weights & Biases; ``wandb sync`` uploads it, nothing else does.

    The step of W&B's own is not used, since it drops what comes late; ``iteration`` is the axis.

    Args:
        run: the run.
        folder: exists; W&B makes ``wandb/offline-run-...`` in it.

    Returns:
        The folder of the offline run.

    Raises:
        MissingExtraError: wandb is not installed.
    """
    wandb = require("wandb", "wandb")
    quiet = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    config: dict[str, Any] = run.attrs | {"settings": run.settings.model_dump(mode="json")}
    tracked = wandb.init(
        mode="offline",
        dir=str(folder),
        project="lipprof",
        name=run.path.stem,
        config=config,
        settings=quiet,
        reinit="create_new",
    )
    tracked.define_metric("iteration")
    tracked.define_metric("*", step_metric="iteration")
    for row, values in _rows(run):
        tracked.log({"iteration": int(run["iteration"][row])} | values)
    directory = Path(tracked.dir).parent
    tracked.finish()
    return [directory]


def _rows(run: Run) -> Iterator[tuple[int, dict[str, float]]]:
    series = scalars(run)
    for row in range(len(run)):
        known = {name: float(values[row]) for name, values in series.items()}
        yield row, {name: value for name, value in known.items() if np.isfinite(value)}
