"""The live dashboard: the page's figures in Dash, drawn again whenever a run file changed.

The browser asks again soon after each answer, for the figures near its screen; what did not change
is not sent.  Nothing is loaded from elsewhere: Dash serves its own scripts, and a content security
policy forbids the rest.  On a loopback address, requests under another host name are refused (DNS
rebinding).  Only files of the served place can be asked for.
"""

import gzip
import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from plotly.offline import get_plotlyjs, get_plotlyjs_version

from lipprof.errors import ConfigError
from lipprof.record.extras import require
from lipprof.report import html
from lipprof.report.comparison.compare import By
from lipprof.report.live.pieces import name_of
from lipprof.report.live.shelf import Shelf, Snapshot, newest
from lipprof.report.live.views import View, Views

TICK = 700  # ms from an answer to the browser's next question
COMPRESSED = 10_000  # bytes from which an answer is sent packed
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; script-src 'self' {hashes}; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class Server:
    """A bound server of one place; ``serve`` starts answering.

    Args:
        place: a run file, which need not exist yet, or a folder.
        host: address to bind.
        port: 0: any that is free.

    Attributes:
        url: where it answers.

    Raises:
        ConfigError: the address cannot be bound.
        MissingExtraError: dash is not installed.
    """

    def __init__(self, place: Path, host: str = "127.0.0.1", port: int = 8050) -> None:
        self._app = build(place, LOOPBACK if host in LOOPBACK else None)
        self._socket = _bind(host, port)
        self.host, self.port = host, self._socket.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def serve(self) -> None:
        """Answer until Ctrl-C."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line per question
        serving = require("werkzeug.serving", "live")
        server = serving.make_server(
            self.host, self.port, self._app.server, threaded=True, fd=self._socket.fileno()
        )
        try:
            server.serve_forever()
        finally:
            self._socket.close()


def build(place: Path, hosts: set[str] | None = None) -> Any:
    """Build the application.

    Args:
        place: a run file or a folder.
        hosts: names under which requests are answered; None: any.

    Returns:
        A ``dash.Dash``; its ``server`` is a WSGI application.

    Raises:
        MissingExtraError: dash is not installed.
    """
    dash, views, shelf = require("dash", "live"), Views(), Shelf(place)
    none_yet = f"There is no run file (*.h5) in {place} yet."
    app = dash.Dash(
        "lipprof",
        title="lipprof",
        update_title=None,
        serve_locally=True,
        assets_folder="",
        include_assets_files=False,
        index_string=_index(),
    )
    app.layout = lambda: _layout(shelf.look())

    def update(
        _: int, chosen: list[str], by: str, near: list[str], listed: str, shown: Shown | None
    ) -> Any:
        runs, near = shelf.look(), near or []
        mine = [run for run in runs if str(run.path) in (chosen or []) and run.track is not None]
        now = name_of(repr([run.version for run in runs]))
        drawn = name_of(repr((bool(runs), [run.version for run in mine], by, near)))
        options = content = dash.no_update
        if now != listed:
            options = [_option(run) for run in runs]
        if shown is None or shown["drawn"] != drawn:
            view = _view(views, mine, By(by), near) if runs else views.sentence(none_yet)
            content = _answer(view, drawn, shown)
        return (
            (dash.no_update, dash.no_update, content) if now == listed else (options, now, content)
        )

    app.callback(
        dash.Output("runs", "options"),
        dash.Output("listed", "data"),
        dash.Output("answer", "data"),
        dash.Input("tick", "n_intervals"),
        dash.Input("runs", "value"),
        dash.Input("by", "value"),
        dash.Input("near", "data"),
        dash.State("listed", "data"),
        dash.State("shown", "data"),
        running=[(dash.Output("tick", "disabled"), True, False)],  # answers must not overtake
    )(update)
    app.clientside_callback(
        dash.ClientsideFunction("lipprof", "show"),
        dash.Output("shown", "data"),
        dash.Input("answer", "data"),
        dash.State("config", "data"),
    )
    _serve_plotly(app)
    app.server.after_request(_compress)
    _secure(app, hosts)
    return app


def _view(views: Views, runs: Sequence[Snapshot], by: By, near: Sequence[str]) -> View:
    """Draw the chosen runs, as far as they are near the screen."""
    if not runs:
        return views.sentence("Choose runs above: one to read it, several to compare.")
    if len(runs) == 1:
        return views.run(runs[0].path, runs[0].version, near)
    return views.comparison(runs, by, near)


class Shown(TypedDict):
    """What a browser says that it shows; ``live.js`` writes it."""

    drawn: str
    html: str
    pieces: list[str]


def _answer(view: View, drawn: str, shown: Shown | None) -> dict[str, Any]:
    """Write a view for a browser that shows another; ``live.js`` reads it."""
    text = name_of(view.html)
    return {
        "drawn": drawn,
        "hash": text,
        "html": None if shown and shown["html"] == text else view.html,
        "figures": view.drawing.figures,
        "pieces": view.drawing.lacking(shown["pieces"] if shown else ()),
        "revision": view.revision,
    }


def _layout(runs: Sequence[Snapshot]) -> Any:
    h, dcc = require("dash.html", "live"), require("dash.dcc", "live")
    first = newest(runs)
    by = [{"label": f"by {b.value}", "value": b.value} for b in By]
    chosen = [str(first.path)] if first else []
    return h.Div([
        h.Header([
            h.P(h.B("lipprof"), className="brand"),
            dcc.Checklist([_option(run) for run in runs], chosen, id="runs"),
            dcc.RadioItems(by, By.ITERATION.value, id="by", inline=True),
        ]),
        h.Main(id="content"),
        dcc.Interval("tick", TICK),
        dcc.Store("listed"),
        dcc.Store("answer"),
        dcc.Store("shown"),
        dcc.Store("near"),
        dcc.Store("config", data=html.CONFIG),
    ])


def _option(run: Snapshot) -> dict[str, Any]:
    h = require("dash.html", "live")
    label = h.Span([h.B(run.name), " ", h.Span(run.state, className="state")])
    return {"label": label, "value": str(run.path), "disabled": run.track is None}


def _serve_plotly(app: Any) -> None:
    """Serve the plotly.js of the page, once per browser and version."""
    flask = require("flask", "live")
    source = gzip.compress(get_plotlyjs().encode(), 6, mtime=0)

    def plotly() -> Any:
        response = flask.Response(source, mimetype="text/javascript")
        response.headers["Content-Encoding"] = "gzip"
        response.headers["Cache-Control"] = "max-age=31536000, immutable"
        return response

    app.server.add_url_rule(f"/plotly-{get_plotlyjs_version()}.js", "plotly", plotly)


def _compress(response: Any) -> Any:
    """Pack a large answer, for those who look from afar."""
    flask = require("flask", "live")
    packable = "gzip" in flask.request.accept_encodings and not response.content_encoding
    if packable and response.status_code == 200 and len(response.get_data()) > COMPRESSED:
        response.set_data(gzip.compress(response.get_data(), 1))
        response.content_encoding = "gzip"
        response.vary.add("Accept-Encoding")
    return response


def _secure(app: Any, hosts: set[str] | None) -> None:
    flask = require("flask", "live")
    scripts = [*(h.strip("'") for h in app.csp_hashes()), html.script_hash(html.script("live.js"))]
    hashes = " ".join(f"'{name}'" for name in scripts)

    def refuse() -> Any:
        name = flask.request.host.rsplit(":", 1)[0].strip("[]")
        return ("This server answers only under its own name.", 403) if name not in hosts else None

    def protect(response: Any) -> Any:
        response.headers["Content-Security-Policy"] = POLICY.format(hashes=hashes)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    if hosts is not None:
        app.server.before_request(refuse)
    app.server.after_request(protect)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except (OSError, OverflowError) as error:
        listening.close()
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {error}. Choose another port (--port; 0: any that is "
            "free), or stop what uses this one."
        ) from None
    return listening


def _index() -> str:
    """Fill what Dash leaves of its page to us; what it fills itself stays in braces."""
    return (
        _INDEX
        .replace("{css}", html.static("page.css") + html.static("live.css"))
        .replace("{plotly}", f"/plotly-{get_plotlyjs_version()}.js")
        .replace("{js}", html.script("live.js"))
    )


_INDEX = """<!doctype html>
<html lang="en">
<head>
{%metas%}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{%title%}</title>
{%css%}
<style>{css}</style>
</head>
<body data-plotly="{plotly}">
{%app_entry%}
<script>{js}</script>
<footer>{%config%}{%scripts%}{%renderer%}</footer>
</body>
</html>"""
