"""What gets an answer: the units of a run, which are those of AMOS where it is to follow."""

from torch.optim import Optimizer

from lipprof.curvature import ParameterView, Partition
from lipprof.optim import AMOS
from lipprof.profiler.following import advises
from lipprof.settings import Settings


def with_units(settings: Settings, optimizer: Optimizer) -> Settings:
    """Settle what a unit is.

    Args:
        settings: of the run.
        optimizer: of the loop.

    Returns:
        The settings with ``units``: as they say, else those of AMOS, else tensors.
    """
    own = optimizer.units if isinstance(optimizer, AMOS) else "tensor"
    return settings.model_copy(update={"units": settings.units or own})


def partition_of(view: ParameterView, settings: Settings, optimizer: Optimizer) -> Partition:
    """Sort the profiled parameters into the units of a run.

    Args:
        view: the parameters.
        settings: with ``units``.
        optimizer: of the loop.

    Returns:
        The units.

    Raises:
        ConfigError: they are not those of the AMOS that is to follow the recommendation.
    """  # noqa: DOC502 - raised by AMOS
    partition = Partition.of_view(view, settings.units or "tensor")
    if isinstance(optimizer, AMOS) and advises(settings):
        optimizer.require_units(partition.names)
    return partition
