"""When to measure: a schedule is any function from the iteration to yes or no.

The iteration counts completed optimizer steps.  Everything here is sugar for such functions.
"""

from collections.abc import Callable, Iterable

from lipprof.errors import ConfigError
from lipprof.settings import Settings

Schedule = Callable[[int], bool]


def schedule(*, wait: int = 0, every: int = 1, until: int | None = None) -> Schedule:
    """Measure at iterations wait, wait + every, ... up to and including ``until``.

    Args:
        wait: the first.
        every: the distance.
        until: the last that may be measured; None: no end.

    Returns:
        The schedule.

    Raises:
        ConfigError: ``every`` is not positive.
    """
    if every < 1:
        raise ConfigError(f"Got {every=}; expected a positive number of iterations.")

    def due(iteration: int) -> bool:
        if until is not None and iteration > until:
            return False
        return iteration >= wait and (iteration - wait) % every == 0

    return due


def at(iterations: Iterable[int]) -> Schedule:
    """Measure at exactly these iterations."""
    return frozenset(iterations).__contains__


def log_spaced(*, start: int = 1, factor: float = 2.0) -> Schedule:
    """Measure at iteration 0 and then at ``start`` times rising powers of ``factor``, rounded.

    Args:
        start: the first after 0.
        factor: ratio of one to the next, above 1.

    Returns:
        The schedule.

    Raises:
        ConfigError: ``factor`` is not above 1 or ``start`` not positive.
    """
    if not factor > 1 or start < 1:
        raise ConfigError(f"Got {start=}, {factor=}; expected start >= 1 and factor > 1.")
    points = {0}
    upcoming = float(start)

    def due(iteration: int) -> bool:
        nonlocal upcoming
        while upcoming <= iteration:
            points.add(round(upcoming))
            upcoming *= factor
        return iteration in points

    return due


def of_settings(settings: Settings) -> Schedule:
    """Build the schedule that the settings describe: ``at``, or ``wait``, ``every``, ``until``."""
    if settings.at is not None:
        return at(settings.at)
    return schedule(wait=settings.wait, every=settings.every, until=settings.until)
