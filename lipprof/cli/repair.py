"""``lipprof repair``: make a run file that a killed process left behind writable again."""

from pathlib import Path
from typing import Annotated

import typer


def repair(
    run: Annotated[Path, typer.Argument(help="Run file that a killed process left behind.")],
) -> None:
    """Rewrite a run file that was left open; every complete measurement is kept.

    Reading needs no repair: lipprof opens such a file as it is.

    Examples:
        lipprof repair run.h5
    """
    from lipprof.record import repair as repair_run
    from lipprof.report.formats import plural

    typer.echo(f"{run}: {plural(repair_run(run), 'measurement')} kept")
