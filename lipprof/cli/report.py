"""``lipprof report``: the answer of a run, in the terminal, as JSON or as a page."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Run file; it may still be being written.")],
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document and nothing else.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write the page here: one file, no network.")
    ] = None,
    iteration: Annotated[
        int | None, typer.Option(help="Report on this iteration; default: the last measured.")
    ] = None,
    every_tensor: Annotated[
        bool, typer.Option("--all", help="Show every tensor, not only the largest of each side.")
    ] = False,
) -> None:
    """Say what a run found: which optimizer for which tensor, and why.

    Examples:
        lipprof report run.h5
        lipprof report run.h5 --html run.html
        lipprof report run.h5 --json | jq .recommendation.first_order_share
        lipprof report run.h5 --iteration 500 --all
    """
    from lipprof.record import open_run
    from lipprof.report import derived

    with open_run(run) as opened:
        position = derived.select(opened, iteration)
        if html is not None:
            from lipprof.report.page import write_page

            write_page(opened, html, position=position)
        if json:
            from lipprof.report.document import document, to_json

            typer.echo(to_json(document(opened, position)))
        elif html is not None:
            typer.echo(f"Wrote {html}")
        else:
            from rich.console import Console

            from lipprof.report import tables

            Console().print(tables.report(opened, position, every_tensor=every_tensor))
