"""``lipprof demo``: train a small GPT on real text under the profiler, and show what it found."""

from pathlib import Path
from typing import Annotated, Any

import typer


def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="Text to learn; default: TinyShakespeare or Python's own sources."),
    ] = None,
    second: Annotated[
        str | None, typer.Option(help="AMOS's second arm: muon or sophia; default: muon.")
    ] = None,
    iterations: Annotated[int, typer.Option(min=2, help="Optimizer steps.")] = 300,
    every: Annotated[int, typer.Option(min=1, help="Iterations between measurements.")] = 50,
    out: Annotated[Path, typer.Option(help="Run file.")] = Path("run.h5"),
    html: Annotated[Path, typer.Option(help="Page.")] = Path("run.html"),
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 0,
) -> None:
    """Train a small character-level GPT with AMOS under the profiler; about a minute.

    Examples:
        lipprof demo
        lipprof demo --data book.txt --second sophia
        lipprof demo --iterations 1000 --every 100
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from lipprof.advice import Choice
    from lipprof.demo.text import load_text
    from lipprof.demo.train import default_second, train
    from lipprof.record import open_run
    from lipprof.report import derived, tables
    from lipprof.report.page import write_page

    second = second or default_second()
    text = load_text(data)
    console = Console()
    console.print(
        f"A character GPT on {text.origin}: {iterations} steps of AMOS(AdamW, {second}), "
        f"the surface measured every {every}."
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("measuring", total=iterations)

        def on_step(iteration: int, loss: float, optimizer: Any) -> None:
            away = sum(choice is Choice.SECOND for choice in optimizer.assigned.values())
            progress.update(
                task,
                completed=iteration + 1,
                description=f"loss {loss:.3f}, {away} tensors on {second}",
            )

        validation = train(
            text,
            out,
            iterations=iterations,
            every=every,
            second=second,
            seed=seed,
            on_step=on_step,
        )
    console.print(f"Validation loss {validation:.3f} nats per character.\n")
    with open_run(out) as run:
        position = derived.select(run, None)
        console.print(tables.report(run, position, every_tensor=False))
        write_page(run, html, position=position)
    console.print(f"Run file {out}, page {html}. Again: lipprof report {out}", soft_wrap=True)
