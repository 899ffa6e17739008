"""Optimizers: Sophia, and AMOS, which moves tensors between two, ELMO and FOSI on eigenspaces."""

from lipprof.optim import step_rules as _step_rules  # noqa: F401 - registers them
from lipprof.optim.amos import AMOS
from lipprof.optim.assignment import Switch
from lipprof.optim.eigenspace import ELMO, FOSI
from lipprof.optim.sophia import Sophia

__all__ = ["AMOS", "ELMO", "FOSI", "Sophia", "Switch"]
