"""From a series of numbers per tensor to a steady answer: the two rules, hysteresis, dwell.

Rules compare a tensor's Hessian-Lipschitz parameter L with a threshold:
* ``threshold``: a constant (Alg. 2).  Not scale-free: loss × c needs another constant.
* ``newton-safe``: 3λ²/γ (eq. 8), where Newton's step begins to ascend in the worst case.
  Invariant under loss × c, and nothing to tune.

L at or above the threshold asks for the first-order side.  Where L or λ is known only within
bounds, a question that the bounds do not decide stays open: a tensor without an answer gets none,
one with an answer keeps it.  An answer once given changes only when L has passed the threshold by
a factor, several measurements running.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipprof.advice.recommendation import Choice, Recommendation
from lipprof.errors import ConfigError, ShapeError

COLLAPSE_SHARE = 0.95
COLLAPSE_DISTANCE = 0.3
COLLAPSE_MEASUREMENTS = 3

Numbers = NDArray[np.float64]


class Advisor:
    """Gives every tensor its choice, measurement after measurement; holds the hysteresis' state."""

    def __init__(
        self,
        names: Sequence[str],
        numel: Sequence[int],
        *,
        rule: Literal["newton-safe", "threshold"] = "newton-safe",
        threshold: float = 2e-10,
        hysteresis: float = 2.0,
        dwell: int = 2,
    ) -> None:
        if rule not in {"newton-safe", "threshold"}:
            raise ConfigError(f"Unknown rule {rule!r}. Known: newton-safe, threshold.")
        if not threshold > 0 or not hysteresis >= 1 or not dwell >= 1:
            raise ConfigError(
                f"Got {threshold=}, {hysteresis=}, {dwell=}: expected threshold > 0, "
                "hysteresis >= 1 and dwell >= 1."
            )
        self.names = list(names)
        self.numel = np.asarray(numel, np.int64)
        self.rule = rule
        self.threshold = threshold
        self.hysteresis = hysteresis
        self.dwell = dwell
        self._choice = np.full(len(self.names), Choice.NONE, np.int8)
        self._against = np.zeros(len(self.names), np.int64)  # measurements against the answer
        self._stable_for = np.zeros(len(self.names), np.int64)
        self._collapsing_for = 0

    def advise(
        self,
        iteration: int,
        *,
        lipschitz: ArrayLike,
        newton_threshold: ArrayLike,
        curvature: ArrayLike,
        slope: ArrayLike,
        lipschitz_upper: ArrayLike | None = None,
        threshold_range: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> Recommendation:
        """Take in one measurement and answer.

        Args:
            iteration: completed optimizer steps.
            lipschitz: L per tensor, (T,), loss/param³; NaN leaves a tensor's answer as it is.
            newton_threshold: 3λ²/γ, 0 where λ ≤ 0, (T,), loss/param³.
            curvature: λ, (T,), loss/param².
            slope: γ, (T,), loss/param.
            lipschitz_upper: upper bound of L where ``lipschitz`` is a lower one; default: exact.
            threshold_range: bounds of 3λ²/γ where λ is uncertain; default: exact.

        Returns:
            The recommendation, hysteresis applied.

        Raises:
            ShapeError: an array is not of shape (T,).
        """
        upper = lipschitz if lipschitz_upper is None else lipschitz_upper
        low, high = threshold_range or (newton_threshold, newton_threshold)
        columns = {
            "lipschitz": np.asarray(lipschitz, np.float64),
            "lipschitz_upper": np.asarray(upper, np.float64),
            "newton_threshold": np.asarray(newton_threshold, np.float64),
            "threshold_low": np.asarray(low, np.float64),
            "threshold_high": np.asarray(high, np.float64),
            "curvature": np.asarray(curvature, np.float64),
            "slope": np.asarray(slope, np.float64),
        }
        for name, values in columns.items():
            if values.shape != self._choice.shape:
                raise ShapeError(
                    f"`{name}` has shape {values.shape}; expected one number for each of the "
                    f"{len(self.names)} tensors."
                )
        columns["threshold"] = columns.pop("newton_threshold")
        if self.rule == "threshold":
            constant = np.full(self._choice.shape, self.threshold)
            columns |= dict.fromkeys(("threshold", "threshold_low", "threshold_high"), constant)
        self._decide(
            (columns["lipschitz"], columns["lipschitz_upper"]),
            (columns["threshold_low"], columns["threshold_high"]),
        )
        return Recommendation(
            iteration=iteration,
            rule=self.rule,
            names=self.names,
            numel=self.numel,
            choice=self._choice.copy(),
            stable_for=self._stable_for.copy(),
            **columns,
        )

    def _decide(self, lipschitz: tuple[Numbers, Numbers], limit: tuple[Numbers, Numbers]) -> None:
        lowest, highest = lipschitz
        low, high = limit
        known = ~(np.isnan(lowest) | np.isnan(low))
        asks_first, asks_second = lowest >= high, highest < low
        fresh = known & (self._choice == Choice.NONE) & (asks_first | asks_second)
        wanted = np.where(asks_first, Choice.FIRST, Choice.SECOND).astype(np.int8)

        clearly_first = asks_first & (lowest >= high * self.hysteresis)
        clearly_second = asks_second & (highest < low / self.hysteresis)
        against = known & np.where(self._choice == Choice.FIRST, clearly_second, clearly_first)
        self._against = np.where(known, np.where(against, self._against + 1, 0), self._against)
        flip = fresh | (against & (self._choice != Choice.NONE) & (self._against >= self.dwell))

        self._stable_for = np.where(flip, 0, self._stable_for + (self._choice != Choice.NONE))
        self._choice = np.where(flip, wanted, self._choice)
        self._against = np.where(flip, 0, self._against)

    def collapsing(self, recommendation: Recommendation, distance_ratio: float) -> bool:
        """Detect the absorbing collapse: all on the first-order side while parameters stop moving.

        Args:
            recommendation: the newest.
            distance_ratio: distance since the last measurement over its median.

        Returns:
            True when at least 95 % of the parameters were first-order and the distance was under
            0.3 of its median at three measurements running.
        """
        stuck = (
            recommendation.first_order_share >= COLLAPSE_SHARE
            and distance_ratio < COLLAPSE_DISTANCE
        )
        self._collapsing_for = self._collapsing_for + 1 if stuck else 0
        return self._collapsing_for >= COLLAPSE_MEASUREMENTS

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly."""
        return {
            "choice": self._choice.tolist(),
            "against": self._against.tolist(),
            "stable_for": self._stable_for.tolist(),
            "collapsing_for": self._collapsing_for,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._choice = np.asarray(state["choice"], np.int8)
        self._against = np.asarray(state["against"], np.int64)
        self._stable_for = np.asarray(state["stable_for"], np.int64)
        self._collapsing_for = state["collapsing_for"]
