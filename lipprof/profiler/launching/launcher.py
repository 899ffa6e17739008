"""Attaching a profiler to the training loop of a program that does not know of lipprof.

The profiler keeps model and optimizer alive till the end.
"""

from collections.abc import Callable
from pathlib import Path

from torch import nn
from torch.optim.optimizer import Optimizer

from lipprof.curvature import LossClosure, process_count
from lipprof.errors import LipprofError
from lipprof.profiler.attach import Profiler
from lipprof.profiler.launching.finder import LoopFinder, share_of
from lipprof.profiler.schedule import of_settings
from lipprof.profiler.sources.probe import Probe
from lipprof.profiler.state import State
from lipprof.settings import Settings


class Launcher(LoopFinder[Profiler]):
    """Attaches a profiler to the first training loop that this process runs.

    Args:
        path: the run file.
        settings: of the profiler.
        say: is given one line at a time for the user.
        model: see ``LoopFinder``.
        optimizer: likewise.
        state: of the profiler of a training that is resumed; its run file is appended to.
    """

    purpose = "profiled"

    def __init__(
        self,
        path: str | Path,
        settings: Settings,
        say: Callable[[str], None],
        *,
        model: str | None = None,
        optimizer: str | None = None,
        state: State | None = None,
    ) -> None:
        super().__init__(say, model=model, optimizer=optimizer)
        self._state = state
        self.path, self.settings = path, settings

    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        first: int = 0,
        loss: LossClosure | None = None,
    ) -> None:
        """Attach the profiler, and say so or why not.

        Args:
            model: the model.
            optimizer: its optimizer.
            first: steps before the first that may be measured.
            loss: see ``lipprof.attach``.
        """
        begin = 0 if self._state is None else int(self._state["iteration"])
        scheduled, first = of_settings(self.settings), first + begin
        try:
            self.profiler = Profiler(
                model,
                optimizer,
                self.path,
                Probe(loss),
                schedule=lambda iteration: iteration >= first and scheduled(iteration),
                settings=self.settings,
                resume=self._state is not None,
                announce=self._say,
            )
            if self._state is not None:
                self.profiler.load_state_dict(self._state)
        except (LipprofError, OSError) as error:
            self._give_up(f"nothing is profiled: {error}")
            return
        self._stop()
        self._say(self._announcement(self.profiler, late=first > begin))

    def _announcement(self, profiler: Profiler, late: bool) -> str:
        n, share = profiler.view.n, share_of(profiler.model, profiler.optimizer)
        text = (
            f"profiling {type(profiler.model).__name__} ({n:,} parameters) under "
            f"{type(profiler.optimizer).__name__} into {self.path}."
        )
        if share < 1:
            text += f" It holds {share:.0%} of the optimizer's parameters."
        if process_count() > 1:
            text += (
                f" Rank 0 of {process_count()} measures its own batch; the others wait meanwhile."
            )
        text += self._several(profiler.optimizer)
        if late:
            text += " Its forward was not seen before the first step, which is not measured."
        return text

    def conclude(self, attached: Profiler) -> None:
        """Finish the run file."""
        attached.close()
        if attached.last is None:
            steps = f"{type(attached.optimizer).__name__} made {attached.iteration} steps"
            self._say(f"{self.path} has no measurement: {steps}. See --every, --optimizer.")
        else:
            self._say(f"{self.path} is finished. Next: lipprof report {self.path}")
