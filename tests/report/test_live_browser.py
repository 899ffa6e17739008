"""The live dashboard in Chromium: it draws, follows a writer, and its console stays empty."""

import re
import shutil
import subprocess
import threading
from contextlib import contextmanager

import pytest

from lipprof.record import RunWriter
from tests.report.conftest import header, measurements

pytest.importorskip("dash")

import flask
from werkzeug.serving import make_server

from lipprof.report.live.server import LOOPBACK, build

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=15000",
]
NAMES, NUMEL = ("<script>document.title='pwned'</script>", "head"), (300, 100)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]


@contextmanager
def serving(place, on_question=lambda: None):
    app = build(place, LOOPBACK)

    def ask():
        if flask.request.path == "/_dash-update-component":
            on_question()

    app.server.before_request(ask)
    server = make_server("127.0.0.1", 0, app.server, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def browse(url, tmp_path):
    """Return the document after 15 s of the page's clock.  Fails on console output."""
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [str(CHROMIUM), *FLAGS, profile, "--dump-dom", url]
    result = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    assert [line for line in result.stderr.splitlines() if "CONSOLE" in line] == []
    return re.sub(r"<script.*?</script>", "", result.stdout, flags=re.DOTALL)


def test_it_draws_and_follows_a_writer(tmp_path):
    rows = list(measurements(NAMES, NUMEL, 6))
    with RunWriter(tmp_path / "run.h5", header(NAMES, NUMEL)) as writer:
        for row in rows[:3]:
            writer.append(row)
        waiting = iter(rows[3:])

        def on_question():
            if (row := next(waiting, None)) is not None:
                writer.append(row)

        with serving(tmp_path, on_question) as url:
            dom = browse(url, tmp_path)
    assert "running · iteration 500" in dom, "the list follows"
    assert re.search(r"Eigenvectors over tensors at iteration 500", dom), "the figures follow"
    for figure in ("recommendation", "training", "eigenvalues", "lipschitz", "mass", "trust"):
        assert f'id="{figure}-graph"' in dom
    assert dom.count('class="plot-container') == len(set(re.findall(r'id="(\w+)-graph"', dom)))


def test_hostile_names_do_nothing(tmp_path):
    with RunWriter(tmp_path / '"><img src=x>.h5', header(NAMES, NUMEL)) as writer:
        for row in measurements(NAMES, NUMEL, 3):
            writer.append(row)
    with serving(tmp_path) as url:
        dom = browse(url, tmp_path)
    assert "&lt;script&gt;document.title" in dom, "the name is shown"
    assert "<title>lipprof</title>" in dom
    assert "<img" not in dom
