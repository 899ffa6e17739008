"""Read a trial, the run file and the JSON file of one seed, as series of both ends.

Arrays are (M, 2): M measurements; the top pair, then the bottom pair.  NaN is what is missing: a
pair over its tolerance, an eigenvalue of the wrong sign, an L that could not be told.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lipprof
from examples.lipschitz.presets import RIVAL_LRS
from examples.lipschitz.scenarios import SCENARIOS

Series = NDArray[np.float64]

ESTIMATES = {
    "drift": "drift (Alg. 2)",
    "rank": "drift by rank",
    "eigenarc": "EigenARC (Alg. 3)",
    "third": "exact, along v",
    "gradient": "exact, all directions",
    "secant": "at Newton's step",
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One seed of one scenario."""

    about: dict[str, Any]
    iteration: NDArray[np.int64]  # (M,)
    loss: Series  # (M,)
    curvature: Series  # λ
    slope: Series  # γ
    estimates: dict[str, Series]  # L by estimator
    third: Series  # v·∇λ with its sign: positive, where the loss bends up on the way down
    superiority: dict[float, Series]  # by lr: descent of Newton's γ/|λ| minus that of SGD's lr γ
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
    saved = json.loads(path.read_text())
    with lipprof.open_run(path.with_suffix(".h5")) as run:
        recorded = {name: run[name][:, [0, -1]] for name in _RECORDED}
        iteration, loss, distance = run["iteration"], run["loss"], run["distance"]
    observed = {name: np.array(rows, float) for name, rows in saved["series"].items()}
    curvature = recorded["eigenvalue"]
    good = (recorded["converged"] == 1) & (np.sign(curvature) == [1, -1])
    slope = -recorded["grad_projection"]
    length = observed["newton"]
    excess = length * slope - curvature * length**2 / 2 - observed["newton_descent"]
    resolved = np.abs(excess) > 4 * np.finfo(np.float32).eps * np.abs(loss)[:, None]
    secant = np.where(resolved, 6 * np.abs(excess) / length**3, np.nan)
    estimates = {
        "drift": recorded["lipschitz_drift"],
        "rank": np.abs(np.diff(curvature, axis=0, prepend=np.nan)) / distance[:, None],
        "eigenarc": observed["eigenarc"],
        "third": np.abs(observed["third"]),
        "gradient": observed["gradient"],
        "secant": secant,
    }

    def told(series: Series) -> Series:
        return np.where(good, series, np.nan)

    return Trial(
        about=saved["about"],
        iteration=iteration,
        loss=loss,
        curvature=told(curvature),
        slope=told(slope),
        estimates={name: told(series) for name, series in estimates.items()},
        third=told(observed["third"]),
        superiority={
            lr: told(observed["newton_descent"] - observed[f"sgd_descent_{lr}"]) for lr in RIVAL_LRS
        },
        excess=told(excess),
    )


_RECORDED = ("eigenvalue", "grad_projection", "converged", "lipschitz_drift")
