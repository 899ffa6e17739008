"""Whose rule counts where an AMOS is under the profiler."""

import logging

from torch.optim import Optimizer

from lipprof.advice import NewtonSafe, rule_of
from lipprof.optim import AMOS
from lipprof.settings import Settings

_log = logging.getLogger("lipprof")


def advises(settings: Settings) -> bool:
    """Tell whether there will be recommendations."""
    return settings.diagonal_probes > 0 or rule_of(settings.rule, settings.threshold).fixed


def warn_of_other_rule(optimizer: Optimizer, settings: Settings) -> None:
    """Say so where a rule that AMOS was built with will not count.

    Args:
        optimizer: any; only an AMOS follows.
        settings: of the run.
    """
    rule = rule_of(settings.rule, settings.threshold)
    if not isinstance(optimizer, AMOS) or not advises(settings):
        return
    if optimizer.rule not in {rule, NewtonSafe()}:
        _log.warning(
            "lipprof: AMOS was built with rule %s, but follows the profiler's, %s. Give the rule "
            "to attach(rule=...).",
            optimizer.rule,
            rule,
        )
