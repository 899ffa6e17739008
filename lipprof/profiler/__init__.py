"""When to measure, and that the training loop never notices."""

from lipprof.profiler.attach import Profiler, attach
from lipprof.profiler.schedule import Schedule, at, log_spaced, schedule

__all__ = ["Profiler", "Schedule", "at", "attach", "log_spaced", "schedule"]
