"""The report in a terminal: pure functions from a run to renderables of rich.

The answer comes first, in sentences; then the tensors with their reasons, the series, the pairs.
Layout follows the width of the terminal.  No markup is parsed: what comes from the file is Text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lipprof.advice import Choice, Recommendation
from lipprof.record import LIPSCHITZ, RecordedPairSwitch, RecordedSwitch, Run
from lipprof.report import derived, estimators
from lipprof.report.formats import (
    MISSING,
    duration,
    number,
    percent,
    plural,
    printable,
    quantity,
    sparkline,
)
from lipprof.report.recompute import Difference
from lipprof.report.summary import (
    Summary,
    failure_lines,
    identity,
    sentences,
    state_of,
    summarize,
)
from lipprof.report.tensor_table import ROWS_PER_SIDE, STYLE, TensorTable, plain_table
from lipprof.report.tensors import by_side, tensor_rows

UNCONVERGED = "~"
SWITCHES = 8  # latest ones that are listed
BLOCKS = 8  # sharpest ones that are listed
SHARES = ("edge of stability", "first-order share")  # written in percent


def report(run: Run, position: int, *, every_tensor: bool = False) -> RenderableType:
    """Build the whole terminal report.

    Args:
        run: the run.
        position: of the measurement to report on.
        every_tensor: show all tensors and pairs instead of the decisive ones.

    Returns:
        A renderable.
    """
    facts = summarize(run, position)
    parts: list[RenderableType] = [headline(facts), run_summary(run, facts)]
    if facts.recommendation is not None:
        rows = tensor_rows(facts.recommendation, run["assigned"][position])
        limit = None if every_tensor else ROWS_PER_SIDE
        parts.append(TensorTable(by_side(rows, limit), facts.recommendation.rule, run.unit_kind))
    latest = None if every_tensor else SWITCHES
    for title, switches, count in (
        ("AMOS moved", run.switches(latest), facts.switches.count),
        (f"{facts.optimizer} moved", run.pair_switches(latest), facts.pair_switches.count),
    ):
        if switches:
            parts.append(switches_table(title, switches, count))
    parts += [series_table(run), pairs_table(run, position)]
    if run.block_names:
        parts.append(blocks_table(run, position, None if every_tensor else BLOCKS))
    parts.append(legend(run))
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts))


def headline(facts: Summary) -> Text:
    """Say the answer, the state of the surface and how far to trust them."""
    answer, *rest = sentences(facts)
    text = Text(answer, style="bold")
    for sentence in rest:
        text.append(f"\n{sentence}", style="not bold")
    for line in failure_lines(facts):
        text.append(f"\n  {line}", style="not bold red")
    return text


def run_summary(run: Run, facts: Summary) -> Table:
    """Describe what was measured, when, and whether the run ended."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("run", Text(printable(run.path)))
    for label, value in identity(run).items():
        grid.add_row(label, Text(value))
    units = plural(len(run.tensor_names), run.unit_kind)
    grid.add_row("parameters", f"{quantity(int(run.tensor_numel.sum()))} in {units}")
    span = (
        f"{facts.first_iteration:,} to {facts.last_iteration:,}" if facts.measurements else "none"
    )
    shown = f", this report: {facts.iteration:,}" if facts.iteration is not None else ""
    grid.add_row("iterations", f"{span}{shown}")
    grid.add_row("state", f"{state_of(facts)}, {duration(facts.run_seconds)}")
    return grid


def switches_table(
    title: str, switches: Sequence[RecordedSwitch | RecordedPairSwitch], count: int
) -> Table:
    """Show what was moved, when and why: the latest switches first.

    Args:
        title: of the column of names.
        switches: the latest, in the order of time.
        count: of all.

    Returns:
        The table.
    """
    table = plain_table()
    table.add_column(title, ratio=5)
    table.add_column("at", justify="right", no_wrap=True)
    table.add_column("to", no_wrap=True)
    table.add_column("why", ratio=6)
    for switch in reversed(switches):
        to = Text(switch.to.label, style=STYLE[switch.to])
        name, why = Text(printable(switch.name, 40)), Text(printable(switch.reason), style="dim")
        table.add_row(name, f"{switch.iteration:,}", to, why)
    if omitted := count - len(switches):
        table.add_row(Text(f"and {omitted:,} before (--all)", style="dim"))
    return table


def series_table(run: Run) -> Table:
    """Show how loss, gradient, eigenvalues, Lipschitz parameters and the answer went."""
    table = plain_table()
    table.add_column("over the run")
    for header in ("first", "last", "min", "max"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("trend", no_wrap=True)
    for label, series in derived.key_series(run).items():
        write = percent if label in SHARES else number
        known = np.flatnonzero(np.isfinite(series.values))
        where = [] if known.size == 0 else _landmarks(series.values, known)
        cells = [_marked(write(series.values[i]), series.converged[i]) for i in where]
        table.add_row(label, *(cells or [MISSING] * 4), sparkline(series.values))
    return table


def _landmarks(values: derived.Floats, known: np.ndarray) -> list[int]:
    smallest, largest = known[values[known].argmin()], known[values[known].argmax()]
    return [int(i) for i in (known[0], known[-1], smallest, largest)]


def pairs_table(run: Run, position: int) -> Table:
    """Show the eigenpairs of one measurement with the residual that each rests on."""
    table = plain_table()
    table.add_column(f"pair at iteration {run['iteration'][position]:,}")
    names = estimators.recorded(run) or [estimators.serving(run)]
    several = [f"L {estimators.LABELS[name]}" for name in names] if len(names) > 1 else ["L"]
    differentiated = LIPSCHITZ["exact"] in names
    for header in ("λ", "residual", *["gap"] * differentiated, *several, "overlap", "γ", "regret"):
        table.add_column(header, justify="right", no_wrap=True)
    assigned = bool(run["pair_assigned"].any())
    if assigned:
        table.add_column("order", no_wrap=True)
    relative, gap = derived.relative_residual(run)[position], derived.gap(run)[position]
    bounds = {name: estimators.bounds(run, name)[position] for name in names}
    for pair, label in enumerate(run.pair_labels):
        converged = bool(run["converged"][position, pair])
        eigenvalue = _marked(number(run["eigenvalue"][position, pair]), converged)
        lipschitz = [
            f"{bounds[name][pair]} {number(run[name][position, pair])}".strip() for name in names
        ]
        slope = abs(run["grad_projection"][position, pair])
        rest = run["overlap"][position, pair], slope, run["regret"][position, pair]
        apart = [number(gap[pair])] * differentiated
        residual = number(relative[pair])
        order = [_order(run["pair_assigned"][position, pair])] * assigned
        table.add_row(label, eigenvalue, residual, *apart, *lipschitz, *map(number, rest), *order)
    return table


def blocks_table(run: Run, position: int, limit: int | None) -> Table:
    """Show the extreme eigenvalues of the diagonal blocks, the sharpest first.

    Args:
        run: the run.
        position: of the measurement.
        limit: how many; None: all.

    Returns:
        The table.
    """
    table = plain_table()
    table.add_column(f"block at iteration {run['iteration'][position]:,}")
    for header in ("largest λ", "±", "smallest λ", "±"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("largest, trend", no_wrap=True)
    largest = run["block_largest"]
    order = np.argsort(-np.nan_to_num(largest[position], nan=-np.inf), kind="stable")
    for block in order[:limit]:
        converged = bool(run["block_converged"][position, block])
        cells = []
        for end in ("largest", "smallest"):
            cells.append(_marked(number(run[f"block_{end}"][position, block]), converged))
            cells.append(number(run[f"block_{end}_residual"][position, block]))
        name = Text(printable(run.block_names[block], 40))
        table.add_row(name, *cells, sparkline(largest[:, block]))
    if omitted := len(order) - len(order[:limit]):
        table.add_row(Text(f"and {omitted:,} less sharp (--all)", style="dim"))
    return table


def recomputed(
    answer: Recommendation,
    changed: Sequence[Difference],
    *,
    unit_kind: str = "tensor",
    every_tensor: bool = False,
) -> RenderableType:
    """Show a recomputed recommendation and where it differs from the recorded one.

    Args:
        answer: the recomputed recommendation.
        changed: from ``differences``.
        unit_kind: what gets an answer; see ``Run``.
        every_tensor: show all tensors instead of the largest of each side.

    Returns:
        A renderable.
    """
    limit = None if every_tensor else ROWS_PER_SIDE
    table = TensorTable(by_side(tensor_rows(answer), limit), answer.rule, unit_kind)
    text = Text(f"Rule {answer.rule} at iteration {answer.iteration:,}: ", style="bold")
    share = answer.first_order_share
    text.append(
        "no recommendation yet, a Lipschitz estimate takes two measurements."
        if np.isnan(share)
        else f"{percent(share)} of the parameters to the first-order side."
    )
    if not changed:
        return Group(text, Text("The same as the run recorded.\n"), table)
    moved = sum(d.numel for d in changed) / max(1, int(answer.numel.sum()))
    differs = Text(
        f"Differs from what the run recorded on {plural(len(changed), unit_kind)} "
        f"({percent(moved)} of the parameters):"
    )
    for d in changed[:limit]:
        name = printable(d.name, 40)
        differs.append(f"\n  {name}: {d.recorded.label} -> {d.recomputed.label}", style="dim")
    if len(changed) > len(changed[:limit]):
        differs.append(f"\n  and {len(changed) - len(changed[:limit]):,} more (--all)", "dim")
    return Group(text, differs, Text(), table)


def profiles_table(profiles: Mapping[str, Path]) -> Table:
    """List profiles with the first line of comment of each file."""
    table = plain_table()
    table.add_column("profile", no_wrap=True)
    table.add_column("for")
    for name, path in profiles.items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        table.add_row(Text(name, style="bold"), Text(first.removeprefix("#").strip()))
    return table


def legend(run: Run) -> Text:
    """Explain the symbols, the first measurement's gap and the mark of what did not converge."""
    chosen = bool(run["pair_assigned"].any())
    return Text(
        "L: Hessian-Lipschitz parameter, loss/param³, from the second measurement on; "
        "λ: curvature, loss/param²; γ: slope, loss/param. held: measurements since the answer "
        "changed. ≤, ≥: L is a bound only, being mostly noise or not tried out. "
        f"residual: relative, tolerance {run.settings.tol:g}; {UNCONVERGED}: over it, so not to "
        "be relied on. regret: 0 as good as ELMO's step, 1 no guaranteed descent."
        + " order: of the step that the optimizer's rule chose for the pair."
        * chosen,
        style="dim",
    )


def _order(code: int) -> Text:
    """The order of the step that a rule chose for an eigenpair."""
    choice = Choice(int(code))
    return Text(MISSING if choice is Choice.NONE else choice.name.lower(), style=STYLE[choice])


def _marked(text: str, converged: bool) -> str:
    return text if converged or text == MISSING else f"{UNCONVERGED}{text}"
