"""``lipprof watch``: a run in the terminal, live."""

from pathlib import Path
from typing import Annotated

import typer


def watch(
    run: Annotated[Path, typer.Argument(help="Run file; it need not exist yet.")],
    once: Annotated[bool, typer.Option("--once", help="Print one frame and exit.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between frames.")] = 1.0,
) -> None:
    """Follow a run live: eigenvalues, L, the answer, AMOS's switches, time left.  Ctrl-C ends it.

    Examples:
        lipprof watch run.h5
        lipprof watch run.h5 --every 5
        lipprof watch run.h5 --once
    """
    import time

    from rich.console import Console

    from lipprof.report.watch import look
    from lipprof.report.watch import watch as follow

    console = Console()
    if once:
        console.print(look(run, time.time()))
    else:
        follow(run, console, every=every)
