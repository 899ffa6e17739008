"""The command line's frame: registers the commands, and turns user errors into one line.

Commands import what is heavy (torch, h5py, plotly) inside their functions: ``lipprof --help`` and
shell completion are instant.  A bug keeps its traceback; only ``LipprofError`` is caught.
"""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lipprof.cli.attach import attach
from lipprof.cli.compare import compare
from lipprof.cli.demo import demo
from lipprof.cli.doctor import doctor
from lipprof.cli.export import export
from lipprof.cli.profiles import profiles
from lipprof.cli.program import Launching
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
            from lipprof.report.formats import one_line

            typer.echo(f"error: {one_line(error)}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    name="lipprof",
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command(context_settings={"allow_interspersed_args": False})(attach)
app.command()(report)
app.command()(watch)
app.command()(serve)
app.command()(compare)
app.command()(export)
app.command()(recommend)
app.add_typer(profiles, name="profiles")
app.command()(repair)
app.command()(demo)
app.command(context_settings={"allow_interspersed_args": False})(doctor)


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
        lipprof attach -- train.py --lr 0.1
        lipprof report run.h5
        lipprof report run.h5 --html run.html
        lipprof watch run.h5
        lipprof serve runs/
        lipprof compare a.h5 b.h5
        lipprof recommend run.h5 --rule threshold --threshold 1e-9
        lipprof profiles list
        lipprof doctor -- train.py --lr 0.1
    """


def main() -> None:
    """Run the command line.

    A program that is to be profiled runs here, outside the parser, in the process as it was found.
    """
    excepthook, launch = sys.excepthook, None
    try:
        with _encodable():
            app(prog_name="lipprof")
    except Launching as ready:
        launch = ready.launch
    sys.excepthook = excepthook
    if launch is not None:
        launch.run()


@contextmanager
def _encodable() -> Iterator[None]:
    """Let streams replace what the terminal cannot encode, instead of failing."""
    streams = [s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)]
    errors = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream, before in zip(streams, errors, strict=True):
            stream.reconfigure(errors=before)
