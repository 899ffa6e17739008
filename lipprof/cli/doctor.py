"""``lipprof doctor``: what this machine, a training program or a checkpoint allow."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lipprof.cli.attach import ModelChoice, OptimizerChoice, assignments, loading, say
from lipprof.cli.program import AfterImport, Launching, program_of, run_program

if TYPE_CHECKING:
    from lipprof.profiler.doctor.checks import Check
    from lipprof.settings import Settings


@dataclass(frozen=True, slots=True)
class ExaminedProgram:
    """A command line that was understood."""

    command: list[str]
    settings: "Settings"
    model: str | None
    optimizer: str | None

    def run(self) -> None:
        """Run the program for a few steps."""
        torch = AfterImport("torch", self._watch)
        torch.install()
        run_program(self.command)
        if not torch.happened:
            say("nothing was examined: the program did not import torch.")
        raise typer.Exit(1)  # an examination ends the program before this

    def _watch(self) -> None:
        with loading("examined"):
            from lipprof.profiler.doctor.examination import Examiner

            choice = {"model": self.model, "optimizer": self.optimizer}
            Examiner(self.settings, _show, say, **choice).watch()
            return
        raise SystemExit(1)  # the program was started for the examination's sake alone


def doctor(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FOLDER] | -- PROGRAM [ARGS]",
            help="Where run files are to be written; or what would follow python, as for attach.",
        ),
    ] = None,
    module: Annotated[
        str | None, typer.Option("-m", help="Examine a module: lipprof doctor -m package -- ARGS.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Examine a file of torch.save instead.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Settings profile of the measurement to be foreseen.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any of its settings; may be repeated."),
    ] = None,
    model: ModelChoice = None,
    optimizer: OptimizerChoice = None,
) -> None:
    """Try what a run needs: on this machine, in a training program, or from a checkpoint.

    The machine: eigenvalues, second derivatives, a run file. A program: runs its first steps, which
    train as ever, then ends it, and tells what a measurement would take. A checkpoint: sizes and
    memory. Exit code 1: something failed.

    Examples:
        lipprof doctor
        lipprof doctor /scratch/runs
        lipprof doctor -- train.py --lr 0.1
        lipprof doctor --checkpoint model.pt
    """  # noqa: DOC501 - this is shown as help
    from lipprof.settings import load_settings

    loaded = load_settings(profile, **assignments(settings))
    if checkpoint is not None:
        from lipprof.profiler.doctor.checkpoint import examine_checkpoint

        _show_all(examine_checkpoint(checkpoint, loaded))
    elif module is None and (not command or (len(command) == 1 and Path(command[0]).is_dir())):
        from lipprof.profiler.doctor.machine import diagnose

        _show_all(diagnose(Path(command[0] if command else ".")))
    else:
        raise Launching(ExaminedProgram(program_of(module, command), loaded, model, optimizer))


def _show_all(checks: Iterable["Check"]) -> None:
    failed = False
    for check in checks:
        failed |= check.state.value == "failed"
        _show(check)
    if failed:
        raise typer.Exit(1)


def _show(check: "Check") -> None:
    from lipprof.report.formats import printable

    typer.echo(f"{check.state.value:<7} {check.name}: {printable(check.text)}")
