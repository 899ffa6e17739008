"""``lipprof profiles``: the installed settings."""

from typing import Annotated

import typer

profiles = typer.Typer(no_args_is_help=True, help="List or show the installed settings profiles.")


@profiles.command("list")
def list_profiles() -> None:
    """List the installed profiles and what each is for.

    Examples:
        lipprof profiles list
    """
    from rich.console import Console

    from lipprof import settings
    from lipprof.report.tables import profiles_table

    Console().print(profiles_table(settings.profiles()))


@profiles.command("show")
def show_profile(
    name: Annotated[str, typer.Argument(help="Installed profile, or path of a TOML file.")],
) -> None:
    """Print a profile as TOML, the defaults filled in.

    Examples:
        lipprof profiles show quick
        lipprof profiles show quick > mine.toml
    """
    from lipprof.settings import load_settings

    typer.echo(load_settings(name).to_toml(), nl=False)
