"""The page: one HTML file that answers the questions of a run in their order and asks no network.

Everything from the run is escaped: by Jinja's autoescape in the text, by ``heatmaps.label`` where
plotly reads HTML, by ``_script_json`` inside ``<script>``.  A content security policy backs it up:
only the two scripts whose hashes it names may run, and nothing may be loaded.  Cost: plotly.js is
inlined once, 4.8 MB.
"""

import base64
import hashlib
import json
import os
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lipprof.errors import ConfigError
from lipprof.record import Run
from lipprof.report import derived, formats
from lipprof.report.sections import sections
from lipprof.report.summary import Summary, identity, sentences, state_of, summarize
from lipprof.report.tensors import by_side, tensor_rows

CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtons": [["toImage", "resetScale2d"]],
}


def write_page(run: Run, path: str | os.PathLike[str], *, position: int | None = None) -> None:
    """Write the page of a run.

    Args:
        run: the run; empty and failed ones give a page that says so.
        path: the HTML file.
        position: of the measurement to report on; None: the last that did not fail.

    Raises:
        ConfigError: the file cannot be written.
    """
    content = render(run, position)
    try:
        Path(path).write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"Cannot write {path}: {error.strerror}. Give a file in a folder that exists and that "
            "you may write to."
        ) from None


def render(run: Run, position: int | None = None) -> str:
    """Build the page; see ``write_page``.

    Args:
        run: the run.
        position: of the measurement to report on; None: the last that did not fail.

    Returns:
        The HTML document.
    """
    good = derived.usable(run)
    if position is None and good.size:
        position = int(good[-1])
    facts = summarize(run, position)
    answer, *rest = sentences(facts)
    rows = []
    if facts.recommendation is not None and position is not None:
        rows = tensor_rows(facts.recommendation, run["assigned"][position])
    questions = [] if position is None else sections(run, position)
    panels = [panel for section in questions for panel in section.panels]
    plotly_js, page_js = get_plotlyjs(), _static("page.js")
    return (
        _environment()
        .get_template("page.html")
        .render(
            run=run,
            facts=facts,
            answer=answer,
            sentences=rest,
            state=state_of(facts),
            tiles=_tiles(facts),
            identity=identity(run),
            measured=_measured(run),
            rows=rows,
            sides=by_side(rows),
            some_assigned=bool(run["assigned"].any()),
            sections=questions,
            figures=_script_json({p.id: json.loads(p.figure.to_json() or "{}") for p in panels}),
            config=_script_json(CONFIG),
            css=Markup(_static("page.css")),
            plotly_js=Markup(plotly_js),
            page_js=Markup(page_js),
            script_hashes=[_hash(plotly_js), _hash(page_js)],
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lipprof.report", "static"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    written = (formats.number, formats.percent, formats.printable, formats.plural, formats.quantity)
    environment.filters |= {write.__name__: write for write in (*written, breakable)}
    return environment


def _tiles(facts: Summary) -> list[tuple[str, str, str]]:
    """Pick the four numbers at the top: value, label, note."""
    mark = "" if facts.sharpness_converged or np.isnan(facts.sharpness) else "~"
    limit = facts.gradient_descent_limit
    flaws = f"{facts.unconverged:,} unconverged, {facts.failed:,} failed"
    return [
        (formats.percent(facts.first_order_share), "of parameters to first-order",
         "no answer yet" if np.isnan(facts.first_order_share) else "the rest to second-order"),
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


def _script_json(value: object) -> Markup:
    """Write JSON that no HTML parser can end early: ``<``, ``>`` and ``&`` as escapes."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def breakable(name: str) -> Markup:
    """Let a line break after the dots of a tensor's name."""
    return Markup(".<wbr>").join(formats.printable(name).split("."))


def _static(name: str) -> str:
    return resources.files("lipprof.report").joinpath("static", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
