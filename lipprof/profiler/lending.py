"""What the optimizer gets of a measurement: curvature, eigenspaces, and for AMOS the advice."""

import logging

import numpy as np
import torch
from numpy.typing import NDArray

from lipprof.advice import Choice
from lipprof.curvature import ParameterView, Partition
from lipprof.optim import AMOS
from lipprof.profiler.measure import Observer

_log = logging.getLogger("lipprof")


class Lender:
    """Hands on what an observer has measured.

    Args:
        optimizer: one with ``observe_curvature`` is lent the Hessian's diagonal, one with
            ``observe_eigenspaces`` the converged eigenpairs; an ``AMOS`` follows the advice.
        view: the parameters.
        partition: the units.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, view: ParameterView, partition: Partition
    ) -> None:
        self.optimizer, self.view, self.partition = optimizer, view, partition
        self.leads = True  # whether an AMOS follows
        self._collapse_told = False

    def lend(self, observer: Observer) -> None:
        """Hand on the newest measurement."""
        observe = getattr(self.optimizer, "observe_curvature", None)
        if observer.diagonal is not None and observe is not None:
            parts = self.view.split(observer.diagonal)
            observe(dict(zip(self.view.parameters, parts, strict=True)))
        observe = getattr(self.optimizer, "observe_eigenspaces", None)
        if observe is not None and (eigenspaces := observer.eigenspaces) is not None:
            observe(eigenspaces)
        if observer.recommendation is None:
            return
        if isinstance(self.optimizer, AMOS) and self.leads:
            self.optimizer.follow(observer.recommendation)
        if observer.collapsing and not self._collapse_told:
            self._collapse_told = True
            _log.warning(
                "lipprof: nearly all parameters have gone to the first-order side while training "
                "has almost stopped moving. Raise the first-order optimizer's learning rate."
            )

    @property
    def assigned(self) -> NDArray[np.int8] | None:
        """Codes of the side that steps each unit now, (T,); None where the optimizer has none."""
        if not isinstance(self.optimizer, AMOS):
            return None
        sides = self.optimizer.assigned
        return np.array([sides.get(n, Choice.NONE) for n in self.partition.names], np.int8)
