"""What the optimizer gets of a measurement: curvature, eigenspaces, and for AMOS the advice."""

import logging
from dataclasses import replace

import numpy as np
import torch

from lipprof.advice import Choice
from lipprof.curvature import ParameterView, Partition
from lipprof.optim import AMOS, ELMO, FOSI
from lipprof.profiler.measure import Observer
from lipprof.record import Measurement, Status

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
        self._places: list[int] = []  # on the pair axis, of the eigenpairs lent

    def lend(self, observer: Observer) -> None:
        """Hand on the newest measurement."""
        observe = getattr(self.optimizer, "observe_curvature", None)
        if observer.diagonal is not None and observe is not None:
            parts = self.view.split(observer.diagonal)
            observe(dict(zip(self.view.parameters, parts, strict=True)))
        observe = getattr(self.optimizer, "observe_eigenspaces", None)
        self._places = []
        if observe is not None and (eigenspaces := observer.eigenspaces) is not None:
            observe(eigenspaces)
            self._places = observer.lent_places
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

    def with_choices(self, measurement: Measurement) -> Measurement:
        """Add what the optimizer chose for the step just taken.

        Args:
            measurement: the newest; what was lent, unless it failed, was of it.

        Returns:
            The measurement with the side that AMOS has every unit on, or with the answers of the
            rule of ELMO or FOSI for the pairs that were lent.
        """
        if isinstance(self.optimizer, AMOS):
            sides = self.optimizer.assigned
            codes = [sides.get(name, Choice.NONE) for name in self.partition.names]
            return replace(measurement, assigned=np.array(codes, np.int8))
        if not isinstance(self.optimizer, ELMO | FOSI) or measurement.status is Status.FAILED:
            return measurement
        answer, places = self.optimizer.recommendation, self._places
        if answer is None or not places:
            return measurement
        threshold, codes = measurement.pair_threshold.copy(), measurement.pair_assigned.copy()
        threshold[places], codes[places] = answer.evidence.threshold, answer.choice
        return replace(measurement, pair_threshold=threshold, pair_assigned=codes)
