"""What gets an answer: the units of a run, which are those of AMOS where it is to follow."""

from typing import Any

import numpy as np
from torch.optim import Optimizer

from lipprof.advice import Choice
from lipprof.curvature import ParameterView, Partition
from lipprof.optim import AMOS
from lipprof.settings import Settings


def with_units(
    settings: Settings, view: ParameterView, optimizer: Optimizer
) -> tuple[Settings, Partition]:
    """Settle what a unit is, and sort the profiled parameters into units.

    Args:
        settings: of the run.
        view: the parameters.
        optimizer: of the loop.

    Returns:
        The settings with ``units`` (as they say, else those of AMOS, else tensors), and the units.

    Raises:
        ConfigError: they are not those of the AMOS that is to follow the recommendation.
    """  # noqa: DOC502 - raised by AMOS
    amos = optimizer if isinstance(optimizer, AMOS) else None
    units = settings.units or (amos.units if amos else "tensor")
    partition = Partition.of_view(view, units)
    if amos and settings.diagonal_probes:
        amos.require_units(partition.names)
    return settings.model_copy(update={"units": units}), partition


def assigned(optimizer: Optimizer, partition: Partition) -> dict[str, Any]:
    """Say on which side AMOS has the units.

    Args:
        optimizer: of the loop.
        partition: the units.

    Returns:
        Fields of a measurement; none for another optimizer.
    """
    if not isinstance(optimizer, AMOS):
        return {}
    sides = optimizer.assigned
    codes = [sides.get(name, Choice.NONE) for name in partition.names]
    return {"assigned": np.array(codes, np.int8)}
