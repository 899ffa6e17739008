"""The version of lipprof, read by the build and written into every run file."""

__version__ = "0.1.0"
