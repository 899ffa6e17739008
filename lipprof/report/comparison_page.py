"""The page of a comparison: one HTML file, built like that of a run."""

import os

from lipprof.report import html
from lipprof.report.comparison import Comparison, sentences
from lipprof.report.comparison_figures import comparison_panels
from lipprof.report.comparison_tables import labels, standing


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
    panels = comparison_panels(comparison.runs, comparison.names, comparison.by)
    return html.fill(
        "comparison.html",
        panels,
        comparison=comparison,
        answer=first,
        sentences=rest,
        labels=labels(comparison),
        standing=standing(comparison),
    )
