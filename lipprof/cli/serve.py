"""``lipprof serve``: the live dashboard."""

from pathlib import Path
from typing import Annotated

import typer


def serve(
    place: Annotated[Path, typer.Argument(help="Run file, or folder of them.")],
    port: Annotated[int, typer.Option(help="Port; 0: any that is free.")] = 8050,
    host: Annotated[
        str, typer.Option(help="Address to listen on; there is no password.")
    ] = "127.0.0.1",
) -> None:
    """Serve runs as a live page on this machine.  Ctrl-C ends it.

    Examples:
        lipprof serve run.h5
        lipprof serve runs/ --port 8080
        ssh -L 8050:127.0.0.1:8050 cluster lipprof serve runs/
    """
    from lipprof.report.formats import printable
    from lipprof.report.live.server import LOOPBACK, Server

    server = Server(place, host, port)
    if host not in LOOPBACK:
        typer.echo(
            f"warning: whoever reaches {host}:{server.port} can read these runs; there is no "
            "password and no encryption. Prefer 127.0.0.1 and `ssh -L`.",
            err=True,
        )
    typer.echo(f"Serving {printable(place)} at {server.url} (Ctrl-C ends it)")
    server.serve()
