"""What one measurement knows of every unit (tensor, chunk, module): the input of all rules."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipprof.errors import ShapeError

Numbers = NDArray[np.float64]

MOSTLY_NOISE = 0.5
"""Above this share of noise, L is shown as its upper bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The loss along an arm's actual next update d, restricted to each unit; all (T,), loss.

    L(θ + s·d) = L(θ) − s·slope + s²·curvature/2 + s³·bend/6 + ...
    """

    slope: Numbers  # γ = −g·d; positive where d descends
    curvature: Numbers  # dᵀHd
    bend: Numbers  # third derivative along d


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One measurement of T units, in flat order.  Arrays are (T,); what is not known is NaN.

    Raises:
        ShapeError: an array is not of shape (T,).
    """

    iteration: int  # completed optimizer steps
    names: Sequence[str]
    numel: NDArray[np.int64]
    lipschitz: Numbers  # L without its share of noise; loss/param³
    lipschitz_upper: Numbers  # L with it
    threshold: Numbers  # 3λ²/γ, 0 where λ ≤ 0 (eq. 8); loss/param³
    threshold_low: Numbers  # the same within the standard error of λ
    threshold_high: Numbers
    curvature: Numbers  # λ; loss/param²
    slope: Numbers  # γ; loss/param
    first: Candidate | None = None  # None: not measured
    second: Candidate | None = None

    def __post_init__(self) -> None:
        count = len(self.names)
        for holder in (self, self.first, self.second):
            for field in fields(holder) if holder is not None else ():
                values = getattr(holder, field.name)
                if isinstance(values, np.ndarray) and values.shape != (count,):
                    raise ShapeError(
                        f"`{field.name}` has shape {values.shape}; expected one number for each "
                        f"of the {count} tensors."
                    )

    @classmethod
    def exact(
        cls,
        iteration: int,
        names: Sequence[str],
        numel: ArrayLike,
        *,
        lipschitz: ArrayLike,
        threshold: ArrayLike,
        curvature: ArrayLike,
        slope: ArrayLike,
    ) -> "Evidence":
        """Evidence whose numbers are taken as they are, without a margin for noise."""
        known, limit = np.asarray(lipschitz, np.float64), np.asarray(threshold, np.float64)
        return cls(
            iteration=iteration,
            names=names,
            numel=np.asarray(numel, np.int64),
            lipschitz=known,
            lipschitz_upper=known,
            threshold=limit,
            threshold_low=limit,
            threshold_high=limit,
            curvature=np.asarray(curvature, np.float64),
            slope=np.asarray(slope, np.float64),
        )

    @classmethod
    def none(cls, iteration: int, names: Sequence[str], numel: ArrayLike) -> "Evidence":
        """Nothing was measured: for rules that need nothing."""
        unknown = np.full(len(names), np.nan)
        return cls.exact(
            iteration,
            names,
            numel,
            lipschitz=unknown,
            threshold=unknown,
            curvature=unknown,
            slope=unknown,
        )

    @property
    def noise(self) -> Numbers:
        """Share of noise in the mean squared drift, 0 to 1, (T,); NaN where L is not known."""
        with np.errstate(divide="ignore", invalid="ignore"):
            share = 1 - (self.lipschitz / self.lipschitz_upper) ** 2
        return np.where(self.lipschitz_upper == 0, 0.0, share)

    @property
    def newton_descent(self) -> Numbers:
        """Worst-case change of the loss by Newton's step, M(γ/λ) = −γ²/(2λ) + Lγ³/(6λ³), (T,).

        NaN where λ ≤ 0: Newton's step does not descend there.  Positive exactly where L > 3λ²/γ.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(self.curvature > 0, self.slope / self.curvature, np.nan)
            return -self.slope * step / 2 + self.lipschitz * step**3 / 6
