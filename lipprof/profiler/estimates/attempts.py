"""Parts of a measurement that may fail without it: said once, recorded each time."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_log = logging.getLogger("lipprof")


class Attempts:
    """Tries what a measurement can do without.

    Args:
        strict: raise what goes wrong.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._told: set[str] = set()

    def attempt(self, name: str, observe: Callable[[], T], fields: dict[str, Any]) -> T | None:
        """Try one part.

        Args:
            name: what to call it.
            observe: does it.
            fields: of the measurement; ``reason`` takes in a failure.

        Returns:
            What ``observe`` returns; None where it failed.
        """
        try:
            return observe()
        except Exception as error:
            if self._strict:
                raise
            if name not in self._told:
                _log.warning("lipprof: no %s estimate; the rest is measured. %s", name, error)
            self._told.add(name)
            told = f"{name}: {type(error).__name__}: {error}"
            fields["reason"] = f"{fields.get('reason', '')}; {told}".removeprefix("; ")
            return None
