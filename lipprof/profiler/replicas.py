"""Whether one of several processes can be profiled: rank 0 of ``DistributedDataParallel``.

Rank 0 measures its own replica on its own batch, between its step's backward and update; the
others wait for it at their next all-reduce, so a measurement must take less than the timeout of the
process group (by default 10 minutes with NCCL, 30 with gloo).  The parameters do not notice.
"""

from torch import nn
from torch.optim import Optimizer

from lipprof.curvature import check_replica, process_count, process_rank
from lipprof.errors import AttachError
from lipprof.settings import Settings

_TAKING = "observe_curvature", "observe_eigenspaces", "follow"


def own_replica(model: nn.Module, optimizer: Optimizer, settings: Settings) -> nn.Module:
    """Find what this process measures.

    Args:
        model: as the loop calls it.
        optimizer: its optimizer.
        settings: of the run.

    Returns:
        The model; of several processes, what ``DistributedDataParallel`` wraps.

    Raises:
        AttachError: this is not rank 0, the model cannot be evaluated by one process, or what is
            measured would change the steps of this one alone.
    """
    if process_count() == 1:
        return model
    if process_rank() != 0:
        raise AttachError(
            f"This is rank {process_rank()} of {process_count()}, and lipprof profiles rank 0. "
            "Attach there alone: if torch.distributed.get_rank() == 0."
        )
    taking = [name for name in _TAKING if hasattr(optimizer, name)]
    if settings.calibrate or taking:
        what = "calibrate=True" if settings.calibrate else type(optimizer).__name__
        raise AttachError(
            f"{what} takes steps by what is measured, which rank 0 alone would know: the replicas "
            "would drift apart. Profile a single process, or another optimizer."
        )
    return check_replica(model)
