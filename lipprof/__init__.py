"""lipprof: a profiler for the loss surface of PyTorch training loops."""

from lipprof.version import __version__

__all__ = ["__version__"]
