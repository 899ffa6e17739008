"""lipprof: a profiler for the loss surface of PyTorch training loops.

``attach`` profiles a loop, ``calibrate`` finds a learning rate, ``spectrum`` computes eigenpairs
once, ``surface`` has density, trace, blocks and stability too, ``open_run`` reads a run file,
``AMOS``, ``ARC``, ``ELMO``, ``FOSI`` and ``Sophia`` are optimizers, ``Contest`` lets the two of
AMOS compete.  Names load on first use, so that ``import lipprof`` and ``lipprof --help`` do not
wait for torch.
"""

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lipprof.version import __version__

if TYPE_CHECKING:
    from lipprof.advice import Choice, ContestPlan, Recommendation
    from lipprof.curvature import Partition, hutchinson_sample, is_probing
    from lipprof.errors import LipprofError
    from lipprof.optim import AMOS, ARC, ELMO, FOSI, Sophia
    from lipprof.profiler import (
        Calibration,
        Contest,
        Profiler,
        Surface,
        at,
        attach,
        calibrate,
        log_spaced,
        schedule,
        spectrum,
        surface,
    )
    from lipprof.record import Measurement, Run, open_run
    from lipprof.settings import Settings, load_settings

_HOME = {
    "lipprof.advice": ["Choice", "ContestPlan", "Recommendation"],
    "lipprof.curvature": ["Partition", "hutchinson_sample", "is_probing"],
    "lipprof.errors": ["LipprofError"],
    "lipprof.optim": ["AMOS", "ARC", "ELMO", "FOSI", "Sophia"],
    "lipprof.profiler": [
        "Calibration",
        "Contest",
        "Profiler",
        "Surface",
        "at",
        "attach",
        "calibrate",
        "log_spaced",
        "schedule",
        "spectrum",
        "surface",
    ],
    "lipprof.record": ["Measurement", "Run", "open_run"],
    "lipprof.settings": ["Settings", "load_settings"],
}
_VIEWS = {"plot": "Plots", "_repr_html_": "html_view"}  # of a run, by lipprof.report
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AMOS",
    "ARC",
    "ELMO",
    "FOSI",
    "Calibration",
    "Choice",
    "Contest",
    "ContestPlan",
    "LipprofError",
    "Measurement",
    "Partition",
    "Profiler",
    "Recommendation",
    "Run",
    "Settings",
    "Sophia",
    "Surface",
    "__version__",
    "at",
    "attach",
    "calibrate",
    "hutchinson_sample",
    "is_probing",
    "load_settings",
    "log_spaced",
    "open_run",
    "schedule",
    "spectrum",
    "surface",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'lipprof' has no attribute {name!r}")
    module = import_module(_MODULE_OF[name])
    if module.__name__ == "lipprof.record":
        for view, target in _VIEWS.items():
            module.register_view(view, partial(_build_view, target))
    return getattr(module, name)


def _build_view(target: str, run: Any) -> Any:
    return getattr(import_module("lipprof.report.notebook"), target)(run)
