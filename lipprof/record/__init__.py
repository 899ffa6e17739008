"""The run file: schema, writer, reader, repair; the only home of h5py."""

from lipprof.record.answers import RecordedSwitch, assignment_changes, recorded_evidence
from lipprof.record.calibration import CalibrationReading
from lipprof.record.measurement import (
    EDGE_TOL,
    EIGENARC,
    ENGINES,
    EXACT,
    LIPSCHITZ,
    SOURCES,
    Match,
    Measurement,
    Status,
    pair_labels,
)
from lipprof.record.pair_answers import RecordedPairSwitch, pair_assignment_changes
from lipprof.record.reader import Run, open_run, register_view
from lipprof.record.repair import copy_run, repair
from lipprof.record.schema import SCHEMA_VERSION, VARIABLES, RunHeader, Variable
from lipprof.record.trials import RecordedTrial
from lipprof.record.writer import RunWriter

__all__ = [
    "EDGE_TOL",
    "EIGENARC",
    "ENGINES",
    "EXACT",
    "LIPSCHITZ",
    "SCHEMA_VERSION",
    "SOURCES",
    "VARIABLES",
    "CalibrationReading",
    "Match",
    "Measurement",
    "RecordedPairSwitch",
    "RecordedSwitch",
    "RecordedTrial",
    "Run",
    "RunHeader",
    "RunWriter",
    "Status",
    "Variable",
    "assignment_changes",
    "copy_run",
    "open_run",
    "pair_assignment_changes",
    "pair_labels",
    "recorded_evidence",
    "register_view",
    "repair",
]
