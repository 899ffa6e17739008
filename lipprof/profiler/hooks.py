"""Hooks on a module that neither copy nor pickle with it.

``copy.deepcopy(model)`` and ``torch.save(model)`` take a module's hooks along.  A copy that still
reported to the profiler would be noticed, and a file that needs lipprof to be read would be too.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any


class PrivateHook:
    """A callable whose copies do nothing.

    Args:
        function: what it does.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        """Do it."""
        return self._function(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        # Takes any arguments and returns None, and is found wherever there is Python.
        return getattr, (nullcontext(), "__exit__")
