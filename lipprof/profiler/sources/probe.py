"""What is measured: a closure over fixed batches, or, where there is none, the training step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lipprof.curvature import LossClosure, ProbeLoss, process_count
from lipprof.errors import ConfigError
from lipprof.settings import Settings


@dataclass(frozen=True, slots=True)
class Probe:
    """A closure and its batches, as given to ``attach``.

    Raises:
        ConfigError: batches without what they belong to.
    """

    loss: LossClosure | None = None  # None: the training step is replayed
    batches: Sequence[Any] | None = None  # None: the closure takes the model alone
    noise: Sequence[Any] | None = None  # further batches, to compare with

    def __post_init__(self) -> None:
        if self.batches is not None and self.loss is None:
            raise ConfigError("probe= needs loss=, a function of the model and a microbatch.")
        if self.noise is not None and self.batches is None:
            raise ConfigError("noise= needs loss= and probe=, whose batches it compares with.")

    def of(self, model: nn.Module, settings: Settings) -> ProbeLoss | None:
        """The loss that can be evaluated anywhere; None: the training step's own cannot."""
        if self.loss is None:
            return None
        return ProbeLoss(model, self.loss, self.batches, settings.reduction, settings.seed)

    def describe(self, settings: Settings) -> str:
        """Say in a line what is measured."""
        if self.loss is None:
            whole = "the training step's own batch"
            return whole if process_count() == 1 else f"rank 0's part of {whole}"
        over = "" if self.batches is None else f" over {len(self.batches)} microbatches"
        return f"loss closure{over}, {settings.mode} mode"
