"""``lipprof export``: a run in the formats of other programs."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="Run file; it may still be being written.")],
    to: Annotated[
        str,
        typer.Option(help="csv, parquet, json, netcdf, tensorboard, wandb, png or svg."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="File or folder; default: beside the run.")
    ] = None,
) -> None:
    """Write a run in another format: tables, trackers of experiments, images.

    Examples:
        lipprof export run.h5 --to csv
        lipprof export run.h5 --to parquet --out tables/
        lipprof export run.h5 --to tensorboard
    """
    from lipprof.record import open_run
    from lipprof.report.export import export as write
    from lipprof.report.formats import printable

    with open_run(run) as opened:
        for path in write(opened, to, out):
            typer.echo(f"Wrote {printable(path)}")
