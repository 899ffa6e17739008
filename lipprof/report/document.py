"""The report for programs: one JSON document, numbers that are not finite as null.

Keys of the report:

* ``lipprof``, ``schema``: versions of lipprof and of the run file's schema; ``path``.
* ``run``: the root attributes of the run file.
* ``summary``: ``sentences`` (those of the terminal report), ``finished``, ``run_seconds``,
  ``measuring_seconds``, ``cost_share`` (of the run's wall time), ``num_matvecs``,
  ``measurements``, ``unconverged``, ``failed``, ``failures`` (reason to count).
* ``recommendation``: null before the second measurement, else ``iteration``, ``rule``,
  ``first_order_share`` (of the parameters that have an answer) and ``tensors`` in flat order:
  ``name``, ``numel``, ``share``, ``choice``, ``assigned`` (by AMOS; "none yet": not AMOS),
  ``lipschitz``, ``lipschitz_upper`` (with its noise), ``noise`` (share of it), ``threshold``,
  ``curvature``, ``slope``, ``stable_for``, ``reason``.
* ``switches``: what AMOS moved, in the order of time: ``iteration``, ``name``, ``before``, ``to``,
  ``reason``.
* ``pair_switches``: the same of the eigenpairs that ELMO's or FOSI's rule moved.
* ``at``: ``iteration``, ``position``, ``pairs`` and ``blocks`` of the reported measurement; a pair
  has ``label``, ``converged``, ``relative_residual`` and the run file's variables on pairs, a block
  ``name`` and those on blocks.
* ``series``: the run file's variables on measurements alone, and ``lipschitz_positive``,
  ``lipschitz_negative`` (L⁺, L⁻), ``first_order_share``.

Units are those of the run file.
"""

import json
import math
from typing import Any

import numpy as np

from lipprof.advice import Recommendation
from lipprof.record import (
    SCHEMA_VERSION,
    VARIABLES,
    RecordedPairSwitch,
    RecordedSwitch,
    Run,
)
from lipprof.report import derived
from lipprof.report.recompute import Difference
from lipprof.report.summary import Summary, sentences, summarize
from lipprof.report.tensors import TensorRow, tensor_rows
from lipprof.version import __version__

Document = dict[str, Any]


def document(run: Run, position: int) -> Document:
    """Gather the report on one measurement of a run.

    Args:
        run: the run.
        position: of the measurement.

    Returns:
        The document; see the module's header for its keys.
    """
    facts = summarize(run, position)
    answer = facts.recommendation
    return {
        "lipprof": __version__,
        "schema": SCHEMA_VERSION,
        "path": str(run.path),
        "run": run.attrs,
        "summary": _summary(facts),
        "recommendation": None
        if answer is None
        else recommendation_document(answer, tensor_rows(answer, run["assigned"][position])),
        "switches": [_switch(switch) for switch in run.switches()],
        "pair_switches": [_switch(switch) for switch in run.pair_switches()],
        "at": {
            "iteration": facts.iteration,
            "position": position,
            "pairs": _pairs(run, position),
            "blocks": _blocks(run, position),
        },
        "series": _series(run),
    }


def recommendation_document(answer: Recommendation, rows: list[TensorRow]) -> Document:
    """Gather one recommendation, as under ``recommendation`` of the report."""
    return {
        "iteration": answer.iteration,
        "rule": str(answer.rule),
        "first_order_share": answer.first_order_share,
        "tensors": [_tensor(row) for row in rows],
    }


def difference_document(difference: Difference) -> Document:
    """Gather one tensor whose recomputed choice differs from the recorded one."""
    return {
        "name": difference.name,
        "numel": difference.numel,
        "recorded": difference.recorded.label,
        "recomputed": difference.recomputed.label,
    }


def to_json(value: Any) -> str:
    """Write a document as JSON: ASCII, two-space indent, what is not finite as null."""
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _summary(facts: Summary) -> Document:
    return {
        "sentences": sentences(facts),
        "finished": facts.finished,
        "run_seconds": facts.run_seconds,
        "measuring_seconds": facts.measuring_seconds,
        "cost_share": facts.cost_share,
        "num_matvecs": facts.matvecs,
        "measurements": facts.measurements,
        "unconverged": facts.unconverged,
        "failed": facts.failed,
        "failures": dict(facts.reasons),
    }


def _switch(switch: RecordedSwitch | RecordedPairSwitch) -> Document:
    return {
        "iteration": switch.iteration,
        "name": switch.name,
        "before": switch.before.label,
        "to": switch.to.label,
        "reason": switch.reason,
    }


def _tensor(row: TensorRow) -> Document:
    fields = {name: getattr(row, name) for name in row.__dataclass_fields__}
    return fields | {"choice": row.choice.label, "assigned": row.assigned.label}


def _pairs(run: Run, position: int) -> list[Document]:
    columns = {
        v.name: run[v.name][position] for v in VARIABLES if v.axes == ("measurement", "pair")
    }
    columns["relative_residual"] = derived.relative_residual(run)[position]
    columns["converged"] = columns["converged"] == 1
    return [
        {"label": label} | {name: values[i] for name, values in columns.items()}
        for i, label in enumerate(run.pair_labels)
    ]


def _blocks(run: Run, position: int) -> list[Document]:
    columns = {v.name: run.row(v.name, position) for v in VARIABLES if v.axes[1:] == ("block",)}
    columns["block_converged"] = columns["block_converged"] == 1
    return [
        {"name": block} | {name: values[i] for name, values in columns.items()}
        for i, block in enumerate(run.block_names)
    ]


def _series(run: Run) -> Document:
    positive, negative = derived.lipschitz_by_sign(run)
    return {v.name: run[v.name] for v in VARIABLES if v.axes == ("measurement",)} | {
        "lipschitz_positive": positive.values,
        "lipschitz_negative": negative.values,
        "first_order_share": derived.first_order_share(run),
    }


def _plain(value: Any) -> Any:
    """Reduce to what JSON has."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
