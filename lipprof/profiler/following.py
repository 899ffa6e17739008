"""AMOS under the profiler: its units are the run's, and whether it can follow the advice."""

import logging

from torch.optim import Optimizer

from lipprof.advice import NewtonSafe, rule_of
from lipprof.curvature import Partition
from lipprof.optim import AMOS
from lipprof.settings import Settings

_log = logging.getLogger("lipprof")


def check_following(optimizer: Optimizer, partition: Partition, settings: Settings) -> None:
    """Refuse an AMOS of other units, and tell where its own rule will not count.

    Args:
        optimizer: any; only an AMOS follows.
        partition: the units of the run.
        settings: of the run.

    Raises:
        ConfigError: the units are not those of AMOS.
    """  # noqa: DOC502
    if not isinstance(optimizer, AMOS):
        return
    rule = rule_of(settings.rule, settings.threshold)
    if rule.needs_lipschitz and settings.diagonal_probes == 0:
        return
    optimizer.require_units(partition.names)
    if rule.needs_candidates:
        optimizer.await_recommendations()
    if optimizer.rule not in {rule, NewtonSafe()}:
        _log.warning(
            "lipprof: AMOS was built with rule %s, but follows the profiler's, %s. Give the rule "
            "to attach(rule=...).",
            optimizer.rule,
            rule,
        )


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
