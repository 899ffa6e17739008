"""One scheduled iteration's result: the row that the run file stores and the report reads back.

Shapes: P = top + bottom pairs in falling order of eigenvalue (``pair_labels``), T = profiled
tensors in flat order, B = diagonal blocks.  What could not be computed is NaN.
``schema.VARIABLES`` names the unit and the meaning of every field; a test keeps the two in step.
"""

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int8]


EDGE_TOL = 1e-2
"""Relative residual to which ``edge_ratio`` is computed."""

ENGINES = ("retained", "traced", "recomputed", "differences")
"""What computed the Hessian-vector products; positions are the codes of the run file."""


SOURCES = ("unknown", "closure", "replay", "live", "hooks")
"""Where the loss came from; positions are the codes of the run file.  ``replay``: the training step
again; ``live``: its own graph; ``hooks``: nowhere, the optimizer's hooks alone were seen."""

EIGENARC = ("none", "lowered", "kept", "raised", "gave_up", "unresolved", "idle")
"""What EigenARC did to L of a pair; positions are the codes of the run file."""

EXACT = ("none", "autograd", "differences")
"""What gave the eigenvalues' gradients; positions are the codes of the run file."""

LIPSCHITZ = {
    "drift": "lipschitz_drift",
    "exact": "lipschitz_along",
    "eigenarc": "lipschitz_eigenarc",
}
"""Variable that holds L along the eigenvector (Assumption 2), by the estimator's setting."""


class Status(enum.IntEnum):
    """How a measurement ended; the codes are those of the run file."""

    CONVERGED = 0
    UNCONVERGED = 1  # at least one pair is over tolerance; each pair says so itself
    FAILED = 2  # there is no spectrum; ``reason`` says why

    @property
    def label(self) -> str:
        """The status in words."""
        return self.name.lower()


class Match(enum.IntEnum):
    """What became of a pair since the last measurement; the codes are those of the run file."""

    UNKNOWN = 0  # there is no pair, or there was no measurement before
    NEW = 1  # no predecessor among the pairs that were computed
    CONTINUED = 2
    CROSSED = 3  # its order to another continued pair has changed
    REGROUPED = 4  # it cannot be told from others, of which there were more or fewer before

    @property
    def label(self) -> str:
        """The code in words."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Everything that one scheduled iteration produced."""

    iteration: int
    time: float
    seconds: float
    status: Status
    reason: str
    num_matvecs: int
    source: int  # position in SOURCES
    engine: int  # position in ENGINES
    product_error: float
    loss: float
    grad_norm: float
    distance: float
    step_norm: float
    learning_rate: float
    edge_ratio: float
    edge_residual: float
    trace: float
    trace_stderr: float
    num_losses: int
    lost_pairs: int
    rotation: float
    exact_error: float
    exact_method: int  # position in EXACT
    concave_share: float
    eigenarc_ratio: float
    achieved_descent: float

    eigenvalue: Floats  # (P,)
    residual: Floats
    converged: Codes
    overlap: Floats
    match: Codes
    principal_angle: Floats
    grad_projection: Floats
    step_projection: Floats
    lipschitz_drift: Floats
    lipschitz_noise: Floats
    lipschitz_exact: Floats
    lipschitz_along: Floats
    lipschitz_step: Floats
    lipschitz_eigenarc: Floats
    eigenarc_outcome: Codes  # positions in EIGENARC
    noise_floor: Floats
    elmo_step: Floats
    newton_threshold: Floats
    regret: Floats
    step_deviation: Floats
    newton_descent: Floats
    gradient_descent: Floats
    pair_threshold: Floats
    pair_assigned: Codes

    eigenvector_mass: Floats  # (P, T)
    lipschitz_mass: Floats

    block_largest: Floats  # (B,)
    block_largest_residual: Floats
    block_smallest: Floats
    block_smallest_residual: Floats
    block_converged: Codes

    tensor_curvature: Floats  # (T,)
    tensor_curvature_stderr: Floats
    tensor_lipschitz: Floats
    tensor_lipschitz_upper: Floats
    tensor_slope: Floats
    tensor_threshold: Floats
    tensor_threshold_low: Floats
    tensor_threshold_high: Floats
    tensor_grad_norm: Floats
    first_slope: Floats
    first_curvature: Floats
    first_descent: Floats
    second_slope: Floats
    second_curvature: Floats
    second_descent: Floats
    recommendation: Codes
    assigned: Codes

    @classmethod
    def blank(cls, *, pairs: int, tensors: int, blocks: int = 0, **fields: Any) -> "Measurement":
        """Fill every field that is not given with "not computed": NaN, 0 or CONVERGED.

        Args:
            pairs: P.
            tensors: T.
            blocks: B.
            fields: fields by name; ``iteration`` is required.

        Returns:
            The measurement.
        """
        blanks: dict[str, Any] = dict(
            time=np.nan,
            seconds=0.0,
            status=Status.CONVERGED,
            reason="",
            num_matvecs=0,
            source=0,
            engine=0,
            product_error=0.0,
            num_losses=0,
            lost_pairs=0,
            exact_method=0,
        )
        blanks |= dict.fromkeys(_NUMBERS, np.nan)
        sizes = {"P": pairs, "T": tensors, "B": blocks}
        for name, shape in _ARRAY_SHAPES.items():
            blanks[name] = np.full([sizes[axis] for axis in shape], np.nan)
        for name in _CODES:
            blanks[name] = np.zeros(blanks[name].shape, np.int8)
        return cls(**(blanks | fields))


_NUMBERS = [
    "loss",
    "grad_norm",
    "distance",
    "step_norm",
    "learning_rate",
    "edge_ratio",
    "edge_residual",
    "trace",
    "trace_stderr",
    "rotation",
    "exact_error",
    "concave_share",
    "eigenarc_ratio",
    "achieved_descent",
]
_PAIR_FIELDS = """eigenvalue residual converged overlap match principal_angle grad_projection
    step_projection lipschitz_drift lipschitz_noise lipschitz_exact lipschitz_along lipschitz_step
    lipschitz_eigenarc eigenarc_outcome noise_floor elmo_step newton_threshold regret step_deviation
    newton_descent gradient_descent pair_threshold pair_assigned"""
_BLOCK_FIELDS = """block_largest block_largest_residual block_smallest block_smallest_residual
    block_converged"""
_TENSOR_FIELDS = """tensor_curvature tensor_curvature_stderr tensor_lipschitz tensor_lipschitz_upper
    tensor_slope tensor_threshold tensor_threshold_low tensor_threshold_high tensor_grad_norm
    first_slope first_curvature first_descent second_slope second_curvature second_descent
    recommendation assigned"""
_CODES = (
    "converged", "match", "eigenarc_outcome", "pair_assigned", "block_converged", "recommendation",
    "assigned",
)  # fmt: skip
_ARRAY_SHAPES = {
    **dict.fromkeys(_PAIR_FIELDS.split(), "P"),
    "eigenvector_mass": "PT",
    "lipschitz_mass": "PT",
    **dict.fromkeys(_BLOCK_FIELDS.split(), "B"),
    **dict.fromkeys(_TENSOR_FIELDS.split(), "T"),
}


def pair_labels(top: int, bottom: int) -> list[str]:
    """Label the pair axis, which is in falling order of eigenvalue.

    Returns:
        ``top1`` (largest) ... ``topK``, then ``bottomK`` ... ``bottom1`` (smallest).
    """
    return [f"top{i + 1}" for i in range(top)] + [f"bottom{i}" for i in range(bottom, 0, -1)]
