"""Optimizers: Sophia, ARC, ELMO and FOSI on eigenspaces, AMOS between two others."""

from lipprof.optim import step_rules as _step_rules  # noqa: F401 - registers them
from lipprof.optim.amos import AMOS
from lipprof.optim.arc import ARC, ArcStatus, ArcStep
from lipprof.optim.eigenspace import ELMO, FOSI
from lipprof.optim.sophia import Sophia
from lipprof.optim.switches import Switch
from lipprof.optim.trial import register_elementwise

__all__ = [
    "AMOS",
    "ARC",
    "ELMO",
    "FOSI",
    "ArcStatus",
    "ArcStep",
    "Sophia",
    "Switch",
    "register_elementwise",
]
