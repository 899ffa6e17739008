"""A run in a terminal while it is written: one frame of the file as it is now, again and again.

The file is opened anew for every frame, a few milliseconds: whether it is still being created,
grows, was finished, lost its writer or was replaced by another run makes no difference then.  What
cannot be read becomes a frame that says why, and is tried again.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lipprof.advice import Choice
from lipprof.errors import RunFileError
from lipprof.record import Run, open_run
from lipprof.report import derived, tables
from lipprof.report.formats import duration, one_line, percent, plural, printable
from lipprof.report.progress import Progress, State, progress
from lipprof.report.summary import Summary, failure_lines, summarize
from lipprof.report.tensor_table import STYLE

SWITCHES = 5  # latest ones that are listed
STATE_STYLE = {State.LIVE: "bold green", State.FINISHED: "bold", State.STOPPED: "bold red"}


def watch(path: Path, console: Console, *, every: float) -> None:
    """Show frame after frame until Ctrl-C, which leaves the last one on the terminal.

    Without a terminal, the frames in which something was measured are printed one after another.

    Args:
        path: the run file; it need not exist yet.
        console: where to.
        every: seconds between frames.
    """
    try:
        if console.is_terminal:
            _live(path, console, every)
        else:
            for seen in _changes(path, every):
                console.print(seen)
    except KeyboardInterrupt:
        if console.is_terminal:
            console.print(look(path, time.time()))


def _live(path: Path, console: Console, every: float) -> None:
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(look(path, time.time()), refresh=True)
            time.sleep(every)


def _changes(path: Path, every: float) -> Iterator[RenderableType]:
    before = None
    while True:
        try:
            with open_run(path) as run:
                now = (run.attrs.get("created"), len(run), run.finished)
        except RunFileError as error:
            now = str(error)
        if now != before:
            yield look(path, time.time())
        before = now
        time.sleep(every)


def look(path: Path, now: float) -> RenderableType:
    """Build the frame of a file, whatever state it is in.

    Args:
        path: the run file.
        now: seconds since 1970.

    Returns:
        A renderable.
    """
    try:
        with open_run(path) as run:
            return frame(run, now)
    except RunFileError as error:
        if not path.exists():
            return Text(f"Waiting for {printable(path)}: there is no such file yet.")
        return Text.assemble("Waiting: ", (one_line(error), "red"))


def frame(run: Run, now: float) -> RenderableType:
    """Build the frame of a run, what matters most first: a small terminal shows no more.

    Args:
        run: the run.
        now: seconds since 1970.

    Returns:
        A renderable.
    """
    where = progress(run, now)
    facts = summarize(run, derived.latest(run))
    parts: list[RenderableType] = [_title(run, where), _bar(where), Text()]
    parts += [Text(line, style="red") for line in failure_lines(facts, 2)]
    if facts.position is None:
        parts.append(
            Text("No measurement has succeeded yet." if len(run) else "Nothing measured yet.")
        )
        return Group(*parts)
    parts += [_counts(run, facts), _cost(run, facts), *_switches(run, facts), Text()]
    parts += [tables.series_table(run), Text(), tables.pairs_table(run, facts.position)]
    return Group(*parts)


def _title(run: Run, where: Progress) -> Text:
    title = Text(printable(run.path.name), style="bold")
    title.append(f"  {printable(run.attrs.get('model_class', ''), 40)}  ", style="not bold")
    title.append(where.state.value, style=STATE_STYLE[where.state])
    if where.state is State.LIVE and not np.isnan(where.since_measurement):
        title.append(f", measured {duration(where.since_measurement)} ago", style="not bold")
    return title


def _bar(where: Progress) -> RenderableType:
    if where.iteration is None:
        return Text()
    if where.last is None:
        return Text(f"iteration {where.iteration:,}; the end is not known")
    grid = Table.grid(padding=(0, 1))
    left = (
        ""
        if np.isnan(where.seconds_left)
        else f", about {duration(round(where.seconds_left))} left"
    )
    grid.add_row(
        Text(f"iteration {where.iteration:,} of {where.last:,}"),
        ProgressBar(total=1.0, completed=where.share, width=24),
        Text(percent(where.share) + left),
    )
    return grid


def _counts(run: Run, facts: Summary) -> Text:
    choices = run["recommendation"][facts.position]
    total = max(1, int(run.tensor_numel.sum()))
    line = Text("recommended  ")
    for choice in (Choice.FIRST, Choice.SECOND, Choice.NONE):
        mine = choices == choice
        if mine.any():
            share = percent(float(run.tensor_numel[mine].sum()) / total)
            line.append(
                f"{choice.label}: {plural(int(mine.sum()), run.unit_kind)}, {share}   ",
                STYLE[choice],
            )
    return line


def _cost(run: Run, facts: Summary) -> Text:
    share = percent(facts.cost_share)
    flaws = f"{facts.unconverged:,} unconverged, {facts.failed:,} failed"
    return Text(
        f"measuring    {share} of the run's time; the last took "
        f"{duration(float(run['seconds'][-1]))}, {run['num_matvecs'][-1]:,} HVPs; "
        f"{plural(facts.measurements, 'measurement')}, {flaws}"
    )


def _switches(run: Run, facts: Summary) -> list[Text]:
    if np.isnan(facts.assigned_share):
        return []
    count = plural(facts.switches.count, "switch")
    lines = [Text(f"AMOS         {percent(facts.assigned_share)} first-order, {count} so far")]
    for switch in reversed(run.switches(SWITCHES)):
        line = Text(f"  at {switch.iteration:,}: {printable(switch.name, 44)} to ")
        line.append(switch.to.label, STYLE[switch.to])
        lines.append(line.append(f": {printable(switch.reason)}", "dim"))
    return lines
