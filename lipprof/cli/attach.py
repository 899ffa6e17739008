"""``lipprof attach``: profile a training program that does not know of lipprof."""

import atexit
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipprof.cli.program import AfterImport, Launching, program_of, run_program

if TYPE_CHECKING:
    from lipprof.settings import Settings


ModelChoice = Annotated[
    str | None, typer.Option(help="Class name or index of the model, where there are several.")
]
OptimizerChoice = Annotated[
    str | None, typer.Option(help="Class name or index of the optimizer; default: the largest.")
]


@dataclass(frozen=True, slots=True)
class ProfiledProgram:
    """A command line that was understood."""

    command: list[str]
    out: Path
    settings: "Settings"
    model: str | None
    optimizer: str | None

    def run(self) -> None:
        """Run the program under the profiler, to its end."""
        torch = AfterImport("torch", self._watch)
        torch.install()
        atexit.register(_say_if_missing, torch, os.getpid())
        run_program(self.command)

    def _watch(self) -> None:
        with loading("profiled"):
            from lipprof.profiler.launching.launcher import Launcher

            Launcher(
                self.out, self.settings, say, model=self.model, optimizer=self.optimizer
            ).watch()


def attach(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- PROGRAM [ARGS]",
            help="What would follow python: train.py or -m package, and its arguments.",
        ),
    ] = None,
    module: Annotated[
        str | None, typer.Option("-m", help="Run a module: lipprof attach -m package -- ARGS.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Run file.")] = Path("run.h5"),
    every: Annotated[int | None, typer.Option(help="Iterations between measurements.")] = None,
    top: Annotated[int | None, typer.Option(help="Number of largest eigenvalues.")] = None,
    bottom: Annotated[int | None, typer.Option(help="Number of smallest eigenvalues.")] = None,
    tol: Annotated[float | None, typer.Option(help="Relative residual of eigenpairs.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="Installed settings profile, or path of a TOML file.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting; may be repeated."),
    ] = None,
    model: ModelChoice = None,
    optimizer: OptimizerChoice = None,
) -> None:
    """Run a training program unchanged, and profile its loss surface.

    Examples:
        lipprof attach -- train.py --lr 0.1
        lipprof attach --every 200 --out gpt.h5 -- -m trainer.main
        lipprof attach --set max_overhead=0.1 --set engine=auto -- train.py
        torchrun --nproc-per-node 1 -m lipprof attach -- train.py
    """  # noqa: DOC501 - this is shown as help
    from lipprof.settings import load_settings

    program = program_of(module, command)
    given = {"every": every, "top": top, "bottom": bottom, "tol": tol}
    loaded = load_settings(profile, **given | assignments(settings))
    raise Launching(ProfiledProgram(program, out, loaded, model, optimizer))


def assignments(settings: list[str] | None) -> dict[str, Any]:
    """Read the values of ``--set``."""
    return dict(_assignment(text) for text in settings or [])


def _assignment(text: str) -> tuple[str, Any]:
    """Read ``name=value``, the value as in TOML or else as text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"--set {text}: expected name=value.")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def say(line: str) -> None:
    """Tell the user something that is not the program's output."""
    typer.echo(f"lipprof: {line}", err=True)


@contextmanager
def loading(purpose: str) -> Iterator[None]:
    """Load the rest of lipprof within the program's import of torch, which it must not break.

    Args:
        purpose: what becomes of the program, as a participle.

    Yields:
        Once.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a broken library may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        say(f"nothing is {purpose}: lipprof cannot be loaded here. {reason}")


def _say_if_missing(torch: AfterImport, process: int) -> None:
    if not torch.happened and os.getpid() == process:
        say("nothing was profiled: the program did not import torch.")
