"""Hooks that are not noticed: on a module, that neither copy nor pickle with it; on a closure.

``copy.deepcopy(model)`` and ``torch.save(model)`` take a module's hooks along.  A copy that still
reported to the profiler would be noticed, and a file that needs lipprof to be read would be too.
"""

import functools
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


def closure_in(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Callable[..., Any] | None:
    """Find the closure that a step is given.

    Args:
        arguments: of ``Optimizer.step``, the optimizer first, as its pre-hooks get them.
        keywords: likewise.

    Returns:
        The closure; None where there is none.
    """
    closure = keywords.get("closure", arguments[1] if len(arguments) > 1 else None)
    return closure if callable(closure) else None


def after_closure(
    arguments: tuple[Any, ...], keywords: dict[str, Any], action: Callable[[], None]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Let something happen after the first evaluation of the closure that a step is given.

    Args:
        arguments: see ``closure_in``.
        keywords: likewise.
        action: what shall happen.

    Returns:
        Arguments and keywords to step with instead; None where there is no closure.
    """
    closure = closure_in(arguments, keywords)
    if closure is None:
        return None
    waiting = True

    @functools.wraps(closure)
    def evaluate(*inner: Any, **named: Any) -> Any:
        nonlocal waiting
        result = closure(*inner, **named)
        if waiting:
            waiting = False
            action()
        return result

    if "closure" in keywords:
        return arguments, keywords | {"closure": evaluate}
    return (*arguments[:1], evaluate, *arguments[2:]), keywords
