"""The answer: for every tensor, first-order or second-order, with the reason in numbers."""

import difflib
import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipprof.errors import ConfigError

MOSTLY_NOISE = 0.5
"""Above this share of noise, L is shown as its upper bound."""


class Choice(enum.IntEnum):
    """Which kind of optimizer a tensor deserves; the codes are those of the run file."""

    NONE = 0
    FIRST = 1
    SECOND = 2

    @property
    def label(self) -> str:
        """The choice in words."""
        return {0: "none yet", 1: "first-order", 2: "second-order"}[self.value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """One choice per tensor at one iteration.  All arrays have shape (T,), in flat order."""

    iteration: int
    rule: str
    names: Sequence[str]
    numel: NDArray[np.int64]
    choice: NDArray[np.int8]  # codes of Choice
    lipschitz: NDArray[np.float64]  # L without its share of noise; loss / param³
    lipschitz_upper: NDArray[np.float64]  # L with it
    threshold: NDArray[np.float64]  # what L was compared with; loss / param³
    threshold_low: NDArray[np.float64]  # the same within the standard error of λ
    threshold_high: NDArray[np.float64]
    curvature: NDArray[np.float64]  # λ; loss / param²
    slope: NDArray[np.float64]  # γ; loss / param
    stable_for: NDArray[np.int64]  # measurements since the choice last changed

    def __getitem__(self, name: str) -> Choice:
        """Return the choice for the tensor called ``name``.

        Raises:
            ConfigError: there is no such tensor.
        """
        names = list(self.names)
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3)
            hint = f"; did you mean {', '.join(map(repr, near))}?" if near else "."
            raise ConfigError(f"None of the {len(names)} tensors is called {name!r}{hint}")
        return Choice(int(self.choice[names.index(name)]))

    @property
    def noise(self) -> NDArray[np.float64]:
        """Share of noise in the mean squared drift, 0 to 1, (T,); NaN where L is not known."""
        with np.errstate(divide="ignore", invalid="ignore"):
            share = 1 - (self.lipschitz / self.lipschitz_upper) ** 2
        return np.where(self.lipschitz_upper == 0, 0.0, share)

    @property
    def newton_descent(self) -> NDArray[np.float64]:
        """Worst-case change of the loss by Newton's step, M(γ/λ) = −γ²/(2λ) + Lγ³/(6λ³), (T,).

        NaN where λ ≤ 0: Newton's step does not descend there.  Positive exactly where L > 3λ²/γ.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(self.curvature > 0, self.slope / self.curvature, np.nan)
            return -self.slope * step / 2 + self.lipschitz * step**3 / 6

    @property
    def first_order_share(self) -> float:
        """Share of all parameters (not tensors) that are recommended to the first-order side.

        NaN while no tensor has an answer.
        """
        decided = self.choice != Choice.NONE
        total = self.numel[decided].sum()
        if total == 0:
            return float("nan")
        return float(self.numel[self.choice == Choice.FIRST].sum() / total)

    def reason(self, index: int) -> str:
        """Say in one line what decided for the tensor at ``index``.

        Returns:
            A sentence with the numbers that were compared.
        """
        choice = Choice(int(self.choice[index]))
        if np.isnan(self.lipschitz[index]) or np.isnan(self.threshold[index]):
            if choice is Choice.NONE:
                return "no Lipschitz estimate yet: it takes two measurements"
            unknown = "Lipschitz" if np.isnan(self.lipschitz[index]) else "curvature"
            return f"no new {unknown} estimate: kept {choice.label}"
        asks_first = self.lipschitz[index] >= self.threshold_high[index]
        asks_second = self.lipschitz_upper[index] < self.threshold_low[index]
        if not asks_first and not asks_second:
            kept = "" if choice is Choice.NONE else f": kept {choice.label}"
            return (
                f"noise hides it{kept}; L is {self.lipschitz[index]:.1e} to "
                f"{self.lipschitz_upper[index]:.1e}, {self._limit} {self.threshold_low[index]:.1e} "
                f"to {self.threshold_high[index]:.1e}: raise diagonal_probes"
            )
        cause = self._cause(index, asks_first)
        held = asks_first != (choice is Choice.FIRST)
        return f"{cause}, kept {choice.label} by hysteresis" if held else cause

    @property
    def _limit(self) -> str:
        return "3λ²/γ" if self.rule == "newton-safe" else "the limit"

    def _cause(self, index: int, asks_first: bool) -> str:
        if self.rule == "newton-safe" and self.curvature[index] <= 0:
            return f"curvature λ = {self.curvature[index]:.2e} is not positive: Newton would ascend"
        compared = f"L = {self.lipschitz[index]:.2e}"
        if not asks_first and self.noise[index] > MOSTLY_NOISE:
            compared = f"L ≤ {self.lipschitz_upper[index]:.2e}"
        relation = "≥" if asks_first else "<"
        return f"{compared} {relation} {self._limit} = {self.threshold[index]:.2e}"
