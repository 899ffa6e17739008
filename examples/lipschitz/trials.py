"""Read a trial, the run file and the JSON file of one seed, as series of both ends.

Arrays are (M, 2): M measurements; the top pair, then the bottom pair.  NaN is what is missing: a
pair over its tolerance, an eigenvalue of the wrong sign, an L that could not be told.

Two estimates are made here, of what the profiler recorded:

``rank``
    |λᵗ − λᵗ⁻¹| / ‖θ_t − θ_{t−1}‖ of the outermost eigenvalues, whether or not their vectors match.
``newton``
    From the measured descent D of Newton's step x = γ/|λ| alone: L of the cubic model that is exact
    at x, 6 |γx − λx²/2 − D| / x³.  It sees the kinks of ReLU and max-pooling, which no derivative
    at θ does.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lipprof
from examples.lipschitz.scenarios import SCENARIOS

Series = NDArray[np.float64]

ESTIMATES = {
    "drift": "drift (Alg. 2)",
    "rank": "drift by rank",
    "eigenarc": "EigenARC (Alg. 3)",
    "along": "exact, along v",
    "exact": "exact, all directions",
    "newton": "at Newton's step",
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One seed of one scenario."""

    about: dict[str, Any]
    iteration: NDArray[np.int64]  # (M,)
    loss: Series  # (M,)
    lr: float  # of SGD's step in superiority
    curvature: Series  # λ
    slope: Series  # γ
    estimates: dict[str, Series]  # L by estimator
    superiority: Series  # descent of Newton's step γ/|λ| minus descent of SGD's lr γ, along v
    excess: Series  # loss after Newton's step minus its quadratic model

    def unit_free(self, estimator: str) -> Series:
        """L γ/λ²: from 3 on, Newton's step ascends in the worst case (eq. 8)."""
        return self.estimates[estimator] * self.slope / self.curvature**2


def read_trials(folder: Path) -> Iterator[Trial]:
    """Read all trials of a folder, in the order of the scenarios and of the seeds.

    Args:
        folder: ``--out`` of ``run``.

    Yields:
        The trials.
    """
    paths = [path for path in sorted(folder.glob("*.json")) if path.with_suffix(".h5").is_file()]
    order = list(SCENARIOS)
    trials = [read_trial(path) for path in paths]
    yield from sorted(trials, key=lambda trial: order.index(trial.about["scenario"]))


def read_trial(path: Path) -> Trial:
    """Read one trial.

    Args:
        path: of its JSON file.

    Returns:
        The trial.
    """
    about = json.loads(path.read_text())
    with lipprof.open_run(path.with_suffix(".h5")) as run:
        recorded = {name: run[name][:, [0, -1]] for name in _RECORDED}
        lr = float(run["learning_rate"][0])
        iteration, loss, distance = run["iteration"], run["loss"], run["distance"]
    curvature, slope = recorded["eigenvalue"], -recorded["grad_projection"]
    good = (recorded["converged"] == 1) & (np.sign(curvature) == [1, -1])
    length = slope / np.abs(curvature)
    excess = length * slope - curvature * length**2 / 2 - recorded["newton_descent"]
    resolved = np.abs(excess) > 4 * np.finfo(np.float32).eps * np.abs(loss)[:, None]
    estimates = {
        "drift": recorded["lipschitz_drift"],
        "rank": np.abs(np.diff(curvature, axis=0, prepend=np.nan)) / distance[:, None],
        "eigenarc": recorded["lipschitz_eigenarc"],
        "along": recorded["lipschitz_along"],
        "exact": recorded["lipschitz_exact"],
        "newton": np.where(resolved, 6 * np.abs(excess) / length**3, np.nan),
    }

    def told(series: Series) -> Series:
        return np.where(good, series, np.nan)

    return Trial(
        about=about,
        iteration=iteration,
        loss=loss,
        lr=lr,
        curvature=told(curvature),
        slope=told(slope),
        estimates={name: told(series) for name, series in estimates.items()},
        superiority=told(recorded["newton_descent"] - recorded["gradient_descent"]),
        excess=told(excess),
    )


_RECORDED = (
    "eigenvalue",
    "grad_projection",
    "converged",
    "lipschitz_drift",
    "lipschitz_eigenarc",
    "lipschitz_along",
    "lipschitz_exact",
    "newton_descent",
    "gradient_descent",
)
