"""A progress line for long work: how many products, how long; gone at the end."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from lipprof.linalg import SymmetricOperator

if TYPE_CHECKING:
    from rich.progress import Progress

SHOWN_AFTER_S = 2.0


class _Watched:
    """An operator that tells of its products."""

    def __init__(self, operator: SymmetricOperator, what: str, progress: "Progress") -> None:
        self.n, self.dtype, self.device = operator.n, operator.dtype, operator.device
        self._operator, self._what, self._progress = operator, what, progress
        self._started, self._count = time.perf_counter(), 0

    def matvec(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """A v."""
        self._count += 1
        if time.perf_counter() - self._started > SHOWN_AFTER_S:
            if not self._progress.tasks:
                self._progress.start()
                self._progress.add_task(self._what, total=None)
            self._progress.update(self._progress.tasks[0].id, completed=self._count)
        return self._operator.matvec(vector)


@contextmanager
def watched(
    operator: SymmetricOperator, what: str, shown: bool | None
) -> Iterator[SymmetricOperator]:
    """Show how many products an algorithm has taken, once it takes longer than two seconds.

    Args:
        operator: the operator.
        what: is being computed.
        shown: whether; None: where the error stream is a terminal.

    Yields:
        The operator to hand to the algorithm.
    """
    if not (sys.stderr.isatty() if shown is None else shown):
        yield operator
        return
    # Importing rich draws from Python's random numbers, which here are put back.
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}: {task.completed:.0f} products"),
        TimeElapsedColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    try:
        yield _Watched(operator, what, progress)
    finally:
        progress.stop()
