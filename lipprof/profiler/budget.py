"""How much to measure, and whether now: keeps the measurements' share of wall time within a limit.

With ``max_overhead`` a scheduled measurement of C seconds is taken when, after it, measuring will
have cost no more than that share of the time since the start:

    spent + C ≤ max_overhead · (elapsed + C)

Otherwise it waits for the next scheduled iteration (the schedule stretches).  After ``PATIENCE``
scheduled iterations without one, less work is considered: the top end alone, then one pair of it.
C is foreseen from the seconds that a matrix-vector product takes, timed once before the first
measurement, and corrected by what each kind of measurement turned out to cost.
"""

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from lipprof.linalg import expected_matvecs
from lipprof.profiler.estimates.candidates import wants_candidates
from lipprof.settings import Settings

PATIENCE = 4
STABILITY_MATVECS = 12  # for one top pair to 1 %
EXACT_MATVECS = 4  # what the gradient of an eigenvalue costs; measured 2.5 to 4.5
CANDIDATE_MATVECS = 4  # two products, two gradients, a loss
SMOOTHING = 0.5


@dataclass(frozen=True, slots=True)
class Work:
    """What one measurement computes."""

    top: int
    bottom: int
    probes: int
    stability: bool = False
    exact: bool = False
    candidates: bool = False
    blocks: int = 0

    @property
    def expected_matvecs(self) -> int:
        """Products that it takes, roughly; further batches and trial steps are found out."""
        pairs = expected_matvecs(self.top, self.bottom)
        gradients = EXACT_MATVECS * (self.top + self.bottom) * self.exact
        blocks = expected_matvecs(1, 1) * self.blocks
        single = STABILITY_MATVECS * self.stability + CANDIDATE_MATVECS * self.candidates
        return pairs + gradients + blocks + self.probes + single


@dataclass(slots=True)
class Budget:
    """Decides at every scheduled iteration; without ``max_overhead`` always for all of the work."""

    settings: Settings
    blocks: int = 0
    clock: Callable[[], float] = time.perf_counter
    spent: float = 0.0
    _started: float = field(init=False)
    _foreseen: dict[Work, float] = field(init=False, default_factory=dict)
    _waited: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._started = self.clock()

    @property
    def full(self) -> Work:
        """All that the settings ask for."""
        s = self.settings
        wanted = wants_candidates(s)
        return Work(s.top, s.bottom, s.diagonal_probes, s.stability, s.exact, wanted, self.blocks)

    @property
    def priced(self) -> bool:
        """Whether costs can be foreseen; if not, ``price`` wants to know two times first."""
        return self.settings.max_overhead is None or bool(self._foreseen)

    def price(self, *, build: float, matvec: float) -> None:
        """Take in what was timed.

        Args:
            build: seconds that an operator takes to be built.
            matvec: seconds that one product takes.
        """
        self._foreseen = {work: build + work.expected_matvecs * matvec for work in self._kinds()}

    def plan(self) -> Work | None:
        """Decide what to measure at this scheduled iteration.

        Returns:
            The work; None to wait.
        """
        if self.settings.max_overhead is None:
            return self.full
        affordable = [work for work in self._kinds() if self._fits(self._foreseen[work])]
        if self.full in affordable:
            return self.full
        self._waited += 1
        return affordable[0] if affordable and self._waited > PATIENCE else None

    def pay(self, work: Work | None, seconds: float) -> None:
        """Take in what was spent on a measurement; None: on one that came to nothing."""
        self.spent += seconds
        if work is None:
            return
        self._waited = 0
        if work in self._foreseen:
            self._foreseen[work] += SMOOTHING * (seconds - self._foreseen[work])

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs: seconds, and what is foreseen for each work."""
        return {
            "spent": self.spent,
            "elapsed": self.clock() - self._started,
            "waited": self._waited,
            "foreseen": [(astuple(work), cost) for work, cost in self._foreseen.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as if no time had passed since; where the work is other, prices are forgotten."""
        self.spent, self._waited = state["spent"], state["waited"]
        self._started = self.clock() - state["elapsed"]
        foreseen = {Work(*work): cost for work, cost in state["foreseen"]}
        self._foreseen = foreseen if foreseen.keys() == set(self._kinds()) else {}

    def _fits(self, cost: float) -> bool:
        limit = self.settings.max_overhead
        elapsed = self.clock() - self._started
        return limit is not None and self.spent + cost <= limit * (elapsed + cost)

    def _kinds(self) -> list[Work]:
        """From all of the work to the least of it."""
        full, few = self.full, min(self.full.probes, 2)
        kinds, less = [full], replace(full, bottom=0, stability=False, blocks=0)
        if full.top:
            kinds += [less, replace(less, top=1, probes=few)]
        elif full.bottom:
            kinds += [replace(less, bottom=1, probes=few)]
        return list(dict.fromkeys(kinds))
