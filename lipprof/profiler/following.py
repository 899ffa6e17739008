"""Whether an AMOS under the profiler can follow its recommendations; found out before training."""

import logging

from torch.optim import Optimizer

from lipprof.advice import NewtonSafe, rule_of
from lipprof.curvature import ParameterView
from lipprof.optim import AMOS
from lipprof.settings import Settings

_log = logging.getLogger("lipprof")


def check_following(optimizer: Optimizer, view: ParameterView, settings: Settings) -> None:
    """Refuse an AMOS that was given other names, and tell where its own rule will not count.

    Args:
        optimizer: any; only an AMOS follows.
        view: the profiled parameters.
        settings: of the run.

    Raises:
        ConfigError: the names are not those of the model.
    """  # noqa: DOC502
    if not isinstance(optimizer, AMOS):
        return
    optimizer.check_names(view.names)
    rule = rule_of(settings.rule, settings.threshold)
    advises = settings.diagonal_probes > 0 or rule.fixed
    if advises and optimizer.rule not in {rule, NewtonSafe()}:
        _log.warning(
            "lipprof: AMOS was built with rule %s, but follows the profiler's, %s. Give the rule "
            "to attach(rule=...).",
            optimizer.rule,
            rule,
        )
