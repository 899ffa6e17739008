"""The run file, schema 1: dimensions, variables, units.  The only place that names them.

A run file is a valid netCDF-4 file.  Dimensions: ``measurement`` (unlimited), ``pair``, ``tensor``,
and ``block`` where diagonal blocks were asked for; without that dimension its variables are absent.
``tensor`` counts the units that get an answer each: tensors, or what ``unit_kind`` says.
``n_valid`` (scalar) is written last of each append: rows beyond it do not exist.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lipprof.record.measurement import EIGENARC, ENGINES, EXACT, SOURCES, Match, Status

SCHEMA_VERSION = 1
REASON_BYTES = 240


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of the file.  ``axes`` are names of dimensions, ``unit`` is ``1`` for ratios."""

    name: str
    axes: tuple[str, ...]
    dtype: str
    unit: str
    long_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeader:
    """What is known before the first measurement: the root attributes and the coordinates."""

    tensor_names: tuple[str, ...]
    tensor_numel: tuple[int, ...]
    top: int
    bottom: int
    model_class: str
    optimizer_class: str
    device: str
    precision: str
    source: str  # where the loss came from at the start, one of SOURCES
    probe: str  # description of the batch that is measured
    settings: str  # TOML
    blocks: tuple[str, ...] = ()  # names of the diagonal blocks that are measured
    calibrated: bool = False  # whether there is a trace of calibration
    contested: bool = False  # whether there may be trials
    pair_rule: str = ""  # of ELMO or FOSI, which chooses for eigenpairs; empty: there is none
    unit_kind: str = "tensor"  # one of UNIT_KINDS: what the dimension ``tensor`` counts
    extra: dict[str, Any] | None = None  # further scalar attributes, e.g. of an experiment


UNIT_KINDS = ("tensor", "module", "chunk")
NUMEL = "entries of the tensor"  # long name of the coordinate ``numel``
M, P, T, B = "measurement", "pair", "tensor", "block"


def _codes(names: Sequence[str]) -> str:
    return "; ".join(f"{code}: {name}" for code, name in enumerate(names))


# fmt: off
VARIABLES: tuple[Variable, ...] = (
    Variable("iteration", (M,), "i8", "1", "completed optimizer steps before the measurement"),
    Variable("time", (M,), "f8", "seconds since 1970-01-01 00:00:00", "when it was measured"),
    Variable("seconds", (M,), "f8", "s", "wall time that the measurement took"),
    Variable("status", (M,), "i1", "1", "; ".join(f"{s.value}: {s.label}" for s in Status)),
    Variable("reason", (M,), f"S{REASON_BYTES}", "1", "why the measurement failed, UTF-8"),
    Variable("num_matvecs", (M,), "i8", "1", "Hessian-vector products, all of them"),
    Variable("source", (M,), "i1", "1", "where the loss came from; " + _codes(SOURCES)),
    Variable("engine", (M,), "i1", "1", _codes(ENGINES)),
    Variable("product_error", (M,), "f8", "1", "relative error of products, if over rounding"),
    Variable("loss", (M,), "f8", "loss", "loss on the measured batch"),
    Variable("grad_norm", (M,), "f8", "loss/param", "norm of its gradient"),
    Variable("distance", (M,), "f8", "param", "displacement since the last measurement, norm"),
    Variable("step_norm", (M,), "f8", "param", "norm of the optimizer's next step"),
    Variable("learning_rate", (M,), "f8", "1", "of the first parameter group"),
    Variable("edge_ratio", (M,), "f8", "1", "top preconditioned eigenvalue over stability edge"),
    Variable("edge_residual", (M,), "f8", "1", "its residual, by an explicit HVP"),
    Variable("trace", (M,), "f8", "loss/param^2", "Hutchinson estimate of the Hessian's trace"),
    Variable("trace_stderr", (M,), "f8", "loss/param^2", "its standard error"),
    Variable("num_losses", (M,), "i8", "1", "evaluations of the loss without a derivative"),
    Variable("lost_pairs", (M,), "i8", "1", "previous pairs without a successor"),
    Variable("rotation", (M,), "f8", "1/param", "L_R: turn of the eigenbasis over the distance"),
    Variable("exact_method", (M,), "i1", "1", _codes(EXACT)),
    Variable("exact_error", (M,), "f8", "1", "of the eigenvalues' gradients, by a self-test"),
    Variable("concave_share", (M,), "f8", "1", "share of ELMO's descent in directions <= 0"),
    Variable("eigenarc_ratio", (M,), "f8", "1", "descent over what M promised, Alg. 3's rho"),
    Variable("achieved_descent", (M,), "f8", "loss", "change over AMOS's next step; minus: falls"),
    Variable("eigenvalue", (M, P), "f8", "loss/param^2", "eigenvalue of the Hessian"),
    Variable("residual", (M, P), "f8", "loss/param^2", "norm of Hv - lambda v, checked by an HVP"),
    Variable("converged", (M, P), "i1", "1", "1 where the residual meets the tolerance"),
    Variable("overlap", (M, P), "f8", "1", "|v . v'| with the matched pair before"),
    Variable("match", (M, P), "i1", "1", "; ".join(f"{m.value}: {m.label}" for m in Match)),
    Variable("principal_angle", (M, P), "f8", "rad", "of its end's span to the one before, sorted"),
    Variable("grad_projection", (M, P), "f8", "loss/param", "g . v, v oriented so that it is <= 0"),
    Variable("step_projection", (M, P), "f8", "param", "the optimizer's next step along v"),
    Variable("lipschitz_drift", (M, P), "f8", "loss/param^3", "Hessian-Lipschitz, Alg. 2"),
    Variable("lipschitz_noise", (M, P), "f8", "1", "share of batch noise in the squared drift"),
    Variable("lipschitz_exact", (M, P), "f8", "loss/param^3", "norm of the eigenvalue's gradient"),
    Variable("lipschitz_along", (M, P), "f8", "loss/param^3", "the same gradient along v"),
    Variable("lipschitz_step", (M, P), "f8", "loss/param^3", "the same along the next step"),
    Variable("lipschitz_eigenarc", (M, P), "f8", "loss/param^3", "Hessian-Lipschitz, Alg. 3"),
    Variable("eigenarc_outcome", (M, P), "i1", "1", _codes(EIGENARC)),
    Variable("noise_floor", (M, P), "f8", "loss/param^2", "spread of the eigenvalue over batches"),
    Variable("elmo_step", (M, P), "f8", "param", "ELMO's minmax step along v, eq. 7"),
    Variable("newton_threshold", (M, P), "f8", "loss/param^3", "3 lambda^2 / gamma, eq. 8"),
    Variable("regret", (M, P), "f8", "1", "1 - M(next step)/M(ELMO's step); 0 is optimal"),
    Variable("step_deviation", (M, P), "f8", "1", "next step over ELMO's, minus 1 (Notation 8)"),
    Variable("newton_descent", (M, P), "f8", "loss", "measured descent of Newton's step along v"),
    Variable("gradient_descent", (M, P), "f8", "loss", "measured descent of lr times g . v"),
    Variable("pair_threshold", (M, P), "f8", "loss/param^3", "newton_threshold, live gradient"),
    Variable("pair_assigned", (M, P), "i1", "1", "what the rule of ELMO or FOSI chose; 0: nothing"),
    Variable("eigenvector_mass", (M, P, T), "f8", "1", "share of v that lies in the tensor"),
    Variable("lipschitz_mass", (M, P, T), "f8", "1", "share of its gradient in the tensor"),
    Variable("block_largest", (M, B), "f8", "loss/param^2", "largest eigenvalue of the block"),
    Variable("block_largest_residual", (M, B), "f8", "loss/param^2", "its residual, by an HVP"),
    Variable("block_smallest", (M, B), "f8", "loss/param^2", "smallest eigenvalue of the block"),
    Variable("block_smallest_residual", (M, B), "f8", "loss/param^2", "its residual, by an HVP"),
    Variable("block_converged", (M, B), "i1", "1", "1 where both residuals meet the tolerance"),
    Variable("tensor_curvature", (M, T), "f8", "loss/param^2", "Hessian diagonal, aggregated"),
    Variable("tensor_curvature_stderr", (M, T), "f8", "loss/param^2", "its standard error"),
    Variable("tensor_lipschitz", (M, T), "f8", "loss/param^3", "its Lipschitz parameter, denoised"),
    Variable("tensor_lipschitz_upper", (M, T), "f8", "loss/param^3", "the same with its noise"),
    Variable("tensor_slope", (M, T), "f8", "loss/param", "absolute gradient, aggregated"),
    Variable("tensor_threshold", (M, T), "f8", "loss/param^3", "3 lambda^2 / gamma, eq. 8"),
    Variable("tensor_threshold_low", (M, T), "f8", "loss/param^3", "the same at lambda - stderr"),
    Variable("tensor_threshold_high", (M, T), "f8", "loss/param^3", "the same at lambda + stderr"),
    Variable("tensor_grad_norm", (M, T), "f8", "loss/param", "norm of the tensor's gradient"),
    Variable("first_slope", (M, T), "f8", "loss", "-g . d, d: next step, all on the first side"),
    Variable("first_curvature", (M, T), "f8", "loss", "d . Hd along the same step"),
    Variable("first_descent", (M, T), "f8", "loss", "change foreseen along it; minus: falls"),
    Variable("second_slope", (M, T), "f8", "loss", "-g . d, what may leave on the second side"),
    Variable("second_curvature", (M, T), "f8", "loss", "d . Hd along the same step"),
    Variable("second_descent", (M, T), "f8", "loss", "change foreseen along it; minus: falls"),
    Variable("recommendation", (M, T), "i1", "1", "0: none; 1: first-order; 2: second-order"),
    Variable("assigned", (M, T), "i1", "1", "what AMOS ran next; 0: the optimizer is not AMOS"),
)
# fmt: on
