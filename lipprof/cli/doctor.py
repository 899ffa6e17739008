"""``lipprof doctor``: what this machine and this torch can do."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    folder: Annotated[Path, typer.Argument(help="Where run files are to be written.")] = Path("."),
) -> None:
    """Try what a run needs: eigenvalues, second derivatives, a run file. Exit code 1: one failed.

    Examples:
        lipprof doctor
        lipprof doctor /scratch/runs
    """  # noqa: DOC501 - this is shown as help
    from lipprof.profiler.doctor import State, diagnose
    from lipprof.report.formats import printable

    failed = False
    for check in diagnose(folder):
        failed |= check.state is State.FAILED
        typer.echo(f"{check.state.value:<7} {check.name}: {printable(check.text)}")
    if failed:
        raise typer.Exit(1)
