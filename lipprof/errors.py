"""Exceptions: everything lipprof raises on purpose, one class per kind of cause.

Each message says what was seen, what was expected and what to do.  Catch ``LipprofError`` for all.
"""


class LipprofError(Exception):
    """Base of every error that lipprof raises on purpose."""


class ConfigError(LipprofError, ValueError):
    """A setting, profile or argument that cannot be used as given."""


class ShapeError(LipprofError, ValueError):
    """Tensors that do not fit together."""


class AttachError(LipprofError):
    """A model, optimizer or loop that cannot be attached to."""


class CurvatureError(LipprofError):
    """A loss whose curvature cannot be computed."""


class NotDifferentiableError(CurvatureError):
    """A loss that cannot be differentiated as needed, or does not reach a parameter."""


class NoSecondDerivativeError(NotDifferentiableError):
    """An operator in the graph can be differentiated once only."""


class ThirdDerivativeError(NotDifferentiableError):
    """Third derivatives of the loss do not exist, or come out wrong."""


class NonfiniteError(CurvatureError):
    """The loss, its gradient or a Hessian-vector product is NaN or infinite."""


class NondeterministicCurvatureError(CurvatureError):
    """Two evaluations of the loss at the same parameters differ: there is no single Hessian."""


class ReplayError(CurvatureError):
    """A training step that cannot be replayed faithfully."""


class RunFileError(LipprofError):
    """A run file that cannot be read or written as asked."""


class MissingExtraError(LipprofError, ImportError):
    """An optional dependency is not installed; the message has the command that installs it."""
