"""When to measure, and that the training loop never notices."""

from lipprof.profiler.attach import Profiler, attach
from lipprof.profiler.calibration import Calibration, calibrate
from lipprof.profiler.contest import Contest
from lipprof.profiler.oneshot import spectrum, surface
from lipprof.profiler.schedule import Schedule, at, log_spaced, schedule
from lipprof.profiler.surface import Surface

__all__ = [
    "Calibration",
    "Contest",
    "Profiler",
    "Schedule",
    "Surface",
    "at",
    "attach",
    "calibrate",
    "log_spaced",
    "schedule",
    "spectrum",
    "surface",
]
