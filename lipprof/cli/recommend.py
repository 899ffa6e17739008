"""``lipprof recommend``: the answer of another rule, recomputed from a run file."""

from pathlib import Path
from typing import Annotated

import typer


def recommend(
    run: Annotated[Path, typer.Argument(help="Run file.")],
    rule: Annotated[
        str | None,
        typer.Option(
            help="newton-safe (3λ²/γ), threshold (a constant), 'quantile(share=0.3)', ...; "
            "default: the run's."
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Limit for L of rule threshold, loss/param³.")
    ] = None,
    hysteresis: Annotated[
        float | None, typer.Option(help="Factor by which L must pass the limit to flip an answer.")
    ] = None,
    dwell: Annotated[
        int | None, typer.Option(help="Measurements running at which it must do so.")
    ] = None,
    warmup: Annotated[int | None, typer.Option(help="No answers before this iteration.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document and nothing else.")
    ] = False,
    every_tensor: Annotated[
        bool, typer.Option("--all", help="Show every tensor, not only the largest of each side.")
    ] = False,
) -> None:
    """Recompute the recommendation from the recorded series, without training again.

    Examples:
        lipprof recommend run.h5
        lipprof recommend run.h5 --rule threshold --threshold 1e-9
        lipprof recommend run.h5 --rule "quantile(share=0.3, side=low)"
        lipprof recommend run.h5 --hysteresis 1 --dwell 1 --json
    """
    from lipprof.record import open_run
    from lipprof.report import derived
    from lipprof.report.recompute import differences, recompute

    with open_run(run) as opened:
        position = derived.select(opened)
        answer = recompute(
            opened,
            rule=rule,
            threshold=threshold,
            hysteresis=hysteresis,
            dwell=dwell,
            warmup=warmup,
        )
        recorded, unit_kind = opened["recommendation"][position], opened.unit_kind
    changed = differences(answer, recorded)
    if json:
        from lipprof.report.document import (
            difference_document,
            recommendation_document,
            to_json,
        )
        from lipprof.report.tensors import tensor_rows

        differing = [difference_document(difference) for difference in changed]
        document = recommendation_document(answer, tensor_rows(answer))
        typer.echo(to_json(document | {"differences": differing}))
    else:
        from rich.console import Console

        from lipprof.report import tables

        shown = tables.recomputed(answer, changed, unit_kind=unit_kind, every_tensor=every_tensor)
        Console().print(shown)
