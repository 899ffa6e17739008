"""One HTML file that asks no network: what every page shares.

Everything from a run is escaped: by Jinja's autoescape in the text, by ``labels.label`` where
plotly reads HTML, by ``script_json`` inside ``<script>``.  A content security policy backs it up:
only the two scripts whose hashes it names may run, and nothing may be loaded.  Cost: plotly.js is
inlined once, 4.8 MB.
"""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
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
    plotly_js, page_js = get_plotlyjs(), static("page.js")
    return (
        _environment()
        .get_template(template)
        .render(
            **context,
            panels=panels,
            figures=script_json({p.id: json.loads(p.figure.to_json() or "{}") for p in panels}),
            config=script_json(CONFIG),
            css=Markup(static("page.css")),
            plotly_js=Markup(plotly_js),
            page_js=Markup(page_js),
            script_hashes=[_hash(plotly_js), _hash(page_js)],
        )
    )


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


def script_json(value: object) -> Markup:
    """Write JSON that no HTML parser can end early: ``<``, ``>`` and ``&`` as escapes."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def breakable(name: str) -> Markup:
    """Let a line break after the dots of a tensor's name."""
    return Markup(".<wbr>").join(formats.printable(name).split("."))


def static(name: str) -> str:
    """Read a file that is installed with the pages."""
    return resources.files("lipprof.report").joinpath("static", name).read_text(encoding="utf-8")


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


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
