"""The command line's frame: registers the commands, and turns user errors into one line.

Commands import what is heavy (torch, h5py, plotly) inside their functions: ``lipprof --help`` and
shell completion are instant.  A bug keeps its traceback; only ``LipprofError`` is caught.
"""

import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lipprof.cli.compare import compare
from lipprof.cli.demo import demo
from lipprof.cli.export import export
from lipprof.cli.profiles import profiles
from lipprof.cli.recommend import recommend
from lipprof.cli.repair import repair
from lipprof.cli.report import report
from lipprof.cli.serve import serve
from lipprof.cli.watch import watch
from lipprof.errors import LipprofError
from lipprof.version import __version__


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LipprofError as error:
            from lipprof.report.formats import printable

            typer.echo(f"error: {printable(' '.join(str(error).split()))}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    name="lipprof",
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command()(report)
app.command()(watch)
app.command()(serve)
app.command()(compare)
app.command()(export)
app.command()(recommend)
app.add_typer(profiles, name="profiles")
app.command()(repair)
app.command()(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lipprof {__version__}")
        raise typer.Exit


@app.callback()
def lipprof(
    version: Annotated[  # noqa: ARG001 (its callback does the work)
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """A profiler for the loss surface of PyTorch training.

    Examples:
        lipprof demo
        lipprof report run.h5
        lipprof report run.h5 --html run.html
        lipprof watch run.h5
        lipprof serve runs/
        lipprof compare a.h5 b.h5
        lipprof recommend run.h5 --rule threshold --threshold 1e-9
        lipprof profiles list
    """


def main() -> None:
    """Run the command line; what the terminal cannot encode is replaced, not fatal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app(prog_name="lipprof")
