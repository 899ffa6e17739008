"""``lipprof compare``: several runs side by side."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run files, or folders of them.")],
    by: Annotated[
        str, typer.Option(help="Align the runs by iteration, time or loss.")
    ] = "iteration",
    html: Annotated[
        Path | None, typer.Option(help="Write the page here: one file, no network.")
    ] = None,
    every_tensor: Annotated[
        bool, typer.Option("--all", help="Name every tensor that differs.")
    ] = False,
) -> None:
    """Compare runs: where they stand at the point that all have reached, and how they differ.

    Examples:
        lipprof compare adamw.h5 amos.h5
        lipprof compare runs/ --by time
        lipprof compare adamw.h5 amos.h5 --by loss --html both.html
    """
    from contextlib import ExitStack

    from lipprof.report.comparison.compare import compare_files

    with ExitStack() as stack:
        comparison = compare_files(runs, by, stack)
        if html is not None:
            from lipprof.report.comparison.page import write_comparison

            write_comparison(comparison, html)
            typer.echo(f"Wrote {html}")
        else:
            from rich.console import Console

            from lipprof.report.comparison.tables import comparison_report

            Console().print(comparison_report(comparison, every_tensor=every_tensor))
