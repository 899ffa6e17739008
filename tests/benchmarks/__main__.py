"""``python -m tests.benchmarks``: measure, print, and write results."""

import logging
import platform
import shlex
import sys
import warnings
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from tests.benchmarks import hvp, memory, optimizers, overhead, results, scaling, spectrum
from tests.benchmarks.sections import Section, Setting

SECTIONS: tuple[Section, ...] = (
    hvp.SECTION,
    spectrum.SECTION,
    memory.SECTION,
    scaling.SECTION,
    overhead.SECTION,
    optimizers.SECTION,
)
PEERS = ("curvlinops-for-pytorch", "hessian-eigenthings", "pyhessian", "scipy")
HERE = Path(__file__).parent
WIDE = 160  # of tables that do not go to a terminal


class Device(StrEnum):
    """Where the networks are."""

    cpu = "cpu"
    cuda = "cuda"


def chosen(only: list[str]) -> list[tuple[Section, str]]:
    """Sections with subjects: all, or those named by section, by subject, or as section/subject."""
    everything = [(section, subject) for section in SECTIONS for subject in section.subjects]
    known = {s.name for s in SECTIONS} | {subject for _, subject in everything}
    known |= {f"{section.name}/{subject}" for section, subject in everything}
    if unknown := [name for name in only if name not in known]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of: {', '.join(sorted(known))}")
    return [
        (section, subject)
        for section, subject in everything
        if not only or {section.name, subject, f"{section.name}/{subject}"} & set(only)
    ]


def circumstances(device: Device) -> dict[str, str]:
    """What a figure depends on beside the code."""
    return {
        "device": torch.cuda.get_device_name() if device is Device.cuda else processor(),
        "threads": f"{torch.get_num_threads()} thread",
        "torch": f"torch {torch.__version__}",
        "peers": ", ".join(f"{name} {_version(name)}" for name in PEERS),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": f"`python -m tests.benchmarks {shlex.join(sys.argv[1:])}`".replace(" `", "`"),
    }


def processor() -> str:
    """The CPU's name."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def main(
    quick: Annotated[
        bool, typer.Option(help="Small problems, few repetitions; written only with --out.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A section, a problem, or section/problem; may be repeated."),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.cpu,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data sets.", file_okay=False, exists=True)
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where results and README.md go.", file_okay=False)
    ] = None,
) -> None:
    """Measure lipprof beside its peers."""
    work = chosen(only or [])
    if device is Device.cuda and not torch.cuda.is_available():
        raise typer.BadParameter("this torch sees no CUDA device")
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # the residuals are measured in float32
    logging.getLogger("lipprof").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="There is a performance drop")  # torch.vmap's
    out, err = Console(), Console(stderr=True)
    if not out.is_terminal:
        out.width = WIDE
    setting = Setting(str(device), quick, data, say=lambda line: err.print(line, style="dim"))
    target = folder or (None if quick else HERE)
    measured, failures = {}, 0
    for section, subject in work:
        try:
            rows = section.measure(setting, subject)
        except Exception:  # the sections that follow are worth having all the same
            err.print_exception()
            failures += 1
            continue
        part = results.Part(section.name, subject, rows, circumstances(device))
        measured[part.key] = part
        if target is not None:
            save(target, device, part)
    for section in SECTIONS:
        if parts := results.in_order(section, measured):
            out.print(results.rich_table(section, parts))
    if failures:
        raise typer.Exit(1)


def save(target: Path, device: Device, part: results.Part) -> None:
    """Put one part among those on disk."""
    target.mkdir(parents=True, exist_ok=True)
    path, readme = target / f"results-{device}.json", target / "README.md"
    parts = results.read(path) | {part.key: part}
    results.write(path, parts)
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    content = results.markdown(SECTIONS, parts)
    readme.write_text(results.replace_between(text, str(device), content), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
