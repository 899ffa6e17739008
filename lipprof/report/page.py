"""The page: one HTML file that answers the questions of a run in their order and asks no network.

What keeps text from the run inert is in ``html``.
"""

import os
from datetime import UTC, datetime
from typing import Any

import numpy as np

from lipprof.advice import Choice
from lipprof.record import Run
from lipprof.report import derived, formats, html
from lipprof.report.sections import sections
from lipprof.report.summary import Summary, identity, sentences, state_of, summarize
from lipprof.report.tensors import by_side, tensor_rows

SWITCHES = 200  # latest ones that are listed


def write_page(run: Run, path: str | os.PathLike[str], *, position: int | None = None) -> None:
    """Write the page of a run.

    Args:
        run: the run; empty and failed ones give a page that says so.
        path: the HTML file.
        position: of the measurement to report on; None: the last that did not fail.

    Raises:
        ConfigError: the file cannot be written.
    """
    html.write(render(run, position), path)


def render(run: Run, position: int | None = None) -> str:
    """Build the page; see ``write_page``.

    Args:
        run: the run.
        position: of the measurement to report on; None: the last that did not fail.

    Returns:
        The HTML document.
    """
    context = page_context(run, position)
    return html.fill("page.html", **context)


def page_context(
    run: Run,
    position: int | None = None,
    *,
    limit: int | None = None,
    latest: int = SWITCHES,
) -> dict[str, Any]:
    """Gather what the templates of a run's page show.

    Args:
        run: the run.
        position: of the measurement to report on; None: the last that did not fail.
        limit: tensors to list of each side; None: all.
        latest: how many switches to list.

    Returns:
        Arguments of ``html.fill`` and ``html.part``.
    """
    if position is None:
        position = derived.latest(run)
    facts = summarize(run, position)
    answer, *rest = sentences(facts)
    rows = []
    if facts.recommendation is not None and position is not None:
        rows = tensor_rows(facts.recommendation, run["assigned"][position])
    questions = [] if position is None else sections(run, position)
    return dict(
        panels=[panel for section in questions for panel in section.panels],
        run=run,
        facts=facts,
        answer=answer,
        sentences=rest,
        state=state_of(facts),
        tiles=tiles(facts),
        identity=identity(run),
        measured=_measured(run),
        rows=rows,
        sides=by_side(rows, limit),
        some_assigned=bool(run["assigned"].any()),
        sections=questions,
        switches=run.switches(latest)[::-1],
        switches_omitted=max(0, facts.switches.count - latest),
        pair_switches=run.pair_switches(latest)[::-1],
        pair_switches_omitted=max(0, facts.pair_switches.count - latest),
    )


def tiles(facts: Summary) -> list[tuple[str, str, str]]:
    """Pick the four numbers at the top: value, label, note."""
    mark = "" if facts.sharpness_converged or np.isnan(facts.sharpness) else "~"
    limit = facts.gradient_descent_limit
    first, second, none = map(facts.share, (Choice.FIRST, Choice.SECOND, Choice.NONE))
    flaws = f"{facts.unconverged:,} unconverged, {facts.failed:,} failed"
    return [
        (formats.percent(first), "of parameters to first-order",
         "no answer yet" if np.isnan(first)
         else f"{formats.percent(second)} to second-order, {formats.percent(none)} open" if none
         else "the rest to second-order"),
        (mark + formats.number(facts.sharpness), "sharpness λ",
         "" if np.isnan(limit) else f"2/lr = {formats.number(limit)}"),
        (f"{facts.measurements:,}", "measurements", flaws),
        (formats.percent(facts.cost_share), "of the run spent measuring",
         f"{formats.duration(facts.measuring_seconds)}, {facts.matvecs:,} HVPs"),
    ]  # fmt: skip


def _measured(run: Run) -> str:
    times = run["time"][np.isfinite(run["time"])]
    try:
        last = datetime.fromtimestamp(float(times[-1]), UTC) if times.size else None
    except (OverflowError, OSError, ValueError):
        last = None
    return "" if last is None else f"last measured {last:%Y-%m-%d %H:%M} UTC"
