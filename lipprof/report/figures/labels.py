"""Text from a run where plotly reads a subset of HTML or TeX: axes, legends, hover text."""

import html
import os
from collections.abc import Iterable, Sequence

from lipprof.report.formats import printable

LABEL = 34  # characters of a tensor's name on an axis


def label(text: object, limit: int | None = None) -> str:
    """Make text from the file safe where plotly reads HTML or TeX: printable, escaped, short."""
    return html.escape(printable(text, limit), quote=False).replace("$", "&#36;")


def labels(texts: Iterable[object], limit: int | None = None) -> list[str]:
    """Make labels of an axis, unequal where the texts repeat or were cut to the same.

    Args:
        texts: what they stand for.
        limit: longest label in characters, the mark of a repetition left out.

    Returns:
        One label per text.
    """
    seen: dict[str, int] = {}
    result = []
    for text in texts:
        safe = label(text, limit)
        seen[safe] = seen.get(safe, 0) + 1
        result.append(safe if seen[safe] == 1 else f"{safe} ({seen[safe]})")
    return result


def tensor_labels(names: Sequence[str], rows: Iterable[int]) -> list[str]:
    """Label rows by the names of tensors, without the module path that all names begin with."""
    common = os.path.commonprefix(names).rpartition(".")[0]
    skip = len(common) + 1 if common else 0
    return labels((names[i][skip:] for i in rows), LABEL)
