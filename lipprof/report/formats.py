"""Numbers and names as a person reads them: pure functions from a value to a short string.

Text from a run file may come from anyone: ``printable`` takes its control characters away
(terminal escapes, changes of writing direction).  Escaping for HTML is the page's business.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MISSING = "–"
BARS = "▁▂▃▄▅▆▇█"
LOG_RATIO = 50.0  # positive series that span more than this are drawn on a log scale


def printable(text: object, limit: int | None = None) -> str:
    """Replace every character that is not printable and cut the middle out of long text.

    Args:
        text: anything; ``str`` is taken of it.
        limit: longest result, in characters; None: unlimited.

    Returns:
        One line of printable characters.
    """
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    if limit is None or len(clean) <= limit:
        return clean
    tail = (limit - 1) // 2
    return f"{clean[: limit - 1 - tail]}…{clean[len(clean) - tail :]}"


def one_line(message: object) -> str:
    """Write a message of several lines as one of printable characters."""
    return printable(" ".join(str(message).split()))


def number(value: float) -> str:
    """Write a number with three significant digits, in at most nine characters."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    return f"{value:.3g}" if 1e-2 <= abs(value) < 999.5 else f"{value:.2e}"


def percent(share: float) -> str:
    """Write a share of one in percent; what is not all or nothing never reads 0 % or 100 %."""
    if math.isnan(share):
        return MISSING
    if 0 < share < 0.0005:
        return "<0.1 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f} %".replace(".0 %", " %")


def quantity(count: int) -> str:
    """Write a large count with three digits and a unit prefix: 124 M."""
    for factor, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= 0.9995 * factor and count >= 10_000:
            return f"{count / factor:.3g}{prefix}"
    return f"{count:,}"


def plural(count: int, noun: str) -> str:
    """Write a count with its noun: 1 tensor, 2,000 tensors, 3 switches."""
    ending = "" if count == 1 else "es" if noun.endswith("ch") else "s"
    return f"{count:,} {noun}{ending}"


def duration(seconds: float) -> str:
    """Write a span of time with its two leading units: 2 h 05 min."""
    if math.isnan(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def sparkline(values: Sequence[float] | NDArray[np.floating], width: int = 24) -> str:
    """Draw a series as a line of bars; a gap where nothing is known.

    Args:
        values: the series; longer than ``width``, consecutive values are averaged.
        width: largest number of characters.

    Returns:
        One character per value or group of values.
    """
    series = np.asarray(values, np.float64)
    groups = np.array_split(series, min(width, series.size)) if series.size else []
    finite = [group[np.isfinite(group)] for group in groups]
    level = np.array([group.mean() if group.size else np.nan for group in finite])
    known = np.isfinite(level)
    if not known.any():
        return " " * level.size
    if level[known].min() > 0 and level[known].max() > LOG_RATIO * level[known].min():
        level = np.log(level)
    low, span = np.nanmin(level), np.ptp(level[known])
    scaled = (level - low) / span if span > 0 else np.where(known, 0.5, np.nan)
    last = len(BARS) - 1
    return "".join(BARS[round(float(s) * last)] if not np.isnan(s) else " " for s in scaled)
