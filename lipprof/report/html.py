"""One HTML file that asks no network: what every page shares.

Everything from a run is escaped: by Jinja's autoescape in the text, by ``labels.label`` where
plotly reads HTML, by ``_inert`` inside ``<script>``.  A content security policy backs it up:
only the two scripts whose hashes it names may run, and nothing may be loaded.  Cost: plotly.js is
inlined once, 4.8 MB.
"""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lipprof.errors import ConfigError
from lipprof.report import formats
from lipprof.report.sections import Panel

CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtons": [["toImage", "resetScale2d"]],
}


def fill(template: str, panels: Sequence[Panel], **context: Any) -> str:
    """Fill a template that extends ``base.html``.

    Args:
        template: its name in ``static``.
        panels: every figure of the page, ``panels`` in the template.
        context: what the template needs besides.

    Returns:
        The HTML document.
    """
    plotly_js, page_js = get_plotlyjs(), script("page.js")
    figures = ",".join(f'"{panel.id}":{panel.figure.to_json()}' for panel in panels)
    return part(
        template,
        panels,
        **context,
        figures=_inert(f"{{{figures}}}"),
        config=_inert(json.dumps(CONFIG)),
        css=Markup(static("page.css")),
        plotly_js=Markup(plotly_js),
        page_js=Markup(page_js),
        script_hashes=[script_hash(plotly_js), script_hash(page_js)],
    )


def part(template: str, panels: Sequence[Panel], **context: Any) -> str:
    """Fill a template that is a part of a page; arguments and result as for ``fill``."""
    return _environment().get_template(template).render(**context, panels=panels)


def script(starts: str) -> str:
    """Join what every page runs with the script that starts it."""
    return "".join(static(name) for name in ("tables.js", "figures.js", starts))


def script_hash(source: str) -> str:
    """Name an inline script as a content security policy does, without the quotes."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def write(content: str, path: str | os.PathLike[str]) -> None:
    """Write a page.

    Args:
        content: the document.
        path: the file.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        Path(path).write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"Cannot write {path}: {error.strerror}. Give a file in a folder that exists and that "
            "you may write to."
        ) from None


def _inert(text: str) -> Markup:
    """Keep JSON from being ended early by an HTML parser: ``<``, ``>`` and ``&`` as escapes."""
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def breakable(name: str) -> Markup:
    """Let a line break after the dots of a tensor's name."""
    return Markup(".<wbr>").join(formats.printable(name).split("."))


def static(name: str) -> str:
    """Read a file that is installed with the pages."""
    return resources.files("lipprof.report").joinpath("static", name).read_text(encoding="utf-8")


@cache
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
