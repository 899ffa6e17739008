"""The page of a comparison: one HTML file, built like that of a run."""

import os

from lipprof.report import html
from lipprof.report.comparison.compare import Comparison, sentences
from lipprof.report.comparison.figures import comparison_panels, track
from lipprof.report.comparison.tables import labels, standing


def write_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Write the page of a comparison.

    Args:
        comparison: the runs.
        path: the HTML file.

    Raises:
        ConfigError: the file cannot be written.
    """
    html.write(render_comparison(comparison), path)


def render_comparison(comparison: Comparison) -> str:
    """Build the page; see ``write_comparison``.

    Args:
        comparison: the runs.

    Returns:
        The HTML document.
    """
    first, *rest = sentences(comparison)
    named = zip(comparison.runs, comparison.names, strict=True)
    panels = comparison_panels([track(run, name) for run, name in named], comparison.by)
    return html.fill(
        "comparison.html",
        panels,
        comparison=comparison,
        answer=first,
        sentences=rest,
        labels=labels(comparison),
        standing=standing(comparison),
    )
