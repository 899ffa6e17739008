"""The live dashboard as its browser sees it: questions, answers, and what it refuses."""

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from lipprof.errors import ConfigError, MissingExtraError
from lipprof.record import Measurement, RunWriter, Status, open_run
from lipprof.report import html
from lipprof.report.page import render
from tests.report.conftest import header, measurements

pytest.importorskip("dash")

from lipprof.report.live.server import LOOPBACK, Server, build

NAMES, NUMEL = ("body", "head"), (300, 100)
EVERY = [
    "recommendation", "assigned", "share", "training", "eigenvalues", "lipschitz", "mass",
    "regret", "trust", "loss", "top", "bottom", "positive", "negative", "edge",
]  # fmt: skip
OUTPUTS = [("runs", "options"), ("listed", "data"), ("answer", "data")]


class Browser:
    """Asks as Dash's renderer does, and keeps what the page's script would keep."""

    def __init__(self, place, host="127.0.0.1"):
        self.client = build(place, LOOPBACK).server.test_client()
        self.headers = {"Host": f"{host}:8050"}
        self.listed = self.shown = None
        self.near = EVERY
        self.html, self.figures, self.pieces = "", {}, {}

    def get(self, path):
        return self.client.get(path, headers=self.headers)

    def ask(self, *chosen, by="iteration"):
        """The list of runs and the answer, None where it did not change; None: neither did."""
        body = {
            "output": f"..{'...'.join('.'.join(output) for output in OUTPUTS)}..",
            "outputs": [{"id": i, "property": p} for i, p in OUTPUTS],
            "inputs": [
                {"id": "tick", "property": "n_intervals", "value": 1},
                {"id": "runs", "property": "value", "value": [str(path) for path in chosen]},
                {"id": "by", "property": "value", "value": by},
                {"id": "near", "property": "data", "value": self.near},
            ],
            "changedPropIds": ["tick.n_intervals"],
            "state": [
                {"id": "listed", "property": "data", "value": self.listed},
                {"id": "shown", "property": "data", "value": self.shown},
            ],
        }
        reply = self.client.post("/_dash-update-component", json=body, headers=self.headers)
        if reply.status_code == 204:
            return None
        assert reply.status_code == 200, reply.text
        response = reply.json["response"]
        self.listed = response.get("listed", {}).get("data", self.listed)
        options, answer = (response.get(i, {}).get(p) for i, p in (OUTPUTS[0], OUTPUTS[2]))
        if answer is not None:
            self._show(answer)
        return None if options is answer is None else (options, answer)

    def _show(self, answer):
        known = self.pieces | answer["pieces"]
        names = {name for figure in answer["figures"].values() for name in figure}
        self.pieces = {name: known[name] for name in names}
        self.html = self.html if answer["html"] is None else answer["html"]
        self.figures = {
            i: [json.loads(known[name]) for name in figure]
            for i, figure in answer["figures"].items()
        }
        drawn, text = answer["drawn"], answer["hash"]
        self.shown = {"drawn": drawn, "html": text, "pieces": list(self.pieces)}


def write(path, count=3, amos=False, **changes):
    with RunWriter(path, header(NAMES, NUMEL, **changes)) as writer:
        for row in measurements(NAMES, NUMEL, count, amos=amos):
            writer.append(row)
    return path


def test_one_run_shows_the_figures_of_the_page(tmp_path):
    path = write(tmp_path / "run.h5", amos=True)
    browser = Browser(path)
    browser.ask(path)
    assert browser.figures.keys() == {
        "recommendation", "assigned", "share", "training", "eigenvalues", "lipschitz", "mass",
        "regret", "trust",
    }  # fmt: skip
    assert set(re.findall(r'data-figure="(\w+)"', browser.html)) == browser.figures.keys()
    with open_run(path) as run:
        page = render(run)
    (text,) = re.findall(r"<body>(.*?)<script", page, re.DOTALL)
    assert browser.html.strip() == text.strip(), "the page's text, tiles and table"


def test_figures_are_sent_when_they_come_near_the_screen(tmp_path):
    path = write(tmp_path / "run.h5", amos=True)
    browser = Browser(path)
    browser.near = None
    browser.ask(path)
    assert browser.figures == {}
    assert 'data-figure="trust"' in browser.html
    browser.near = ["regret", "trust"]
    _, answer = browser.ask(path)
    assert browser.figures.keys() == {"regret", "trust"}
    assert answer["html"] is None, "the text is there already"
    browser.near = ["trust", "no such figure"]
    _, answer = browser.ask(path)
    assert (browser.figures.keys(), answer["pieces"]) == ({"trust"}, {})
    whole = Browser(path)
    whole.ask(path)
    assert whole.figures["trust"] == browser.figures["trust"]


def test_large_answers_are_packed_for_those_who_can_read_it(tmp_path):
    browser = Browser(write(tmp_path / "run.h5"))
    script = re.findall(r'src="([^"]*dash_renderer[^"]*)"', browser.get("/").text)[0]
    plain = browser.get(script)
    assert plain.content_encoding is None
    browser.headers["Accept-Encoding"] = "gzip"
    packed = browser.get(script)
    assert packed.content_encoding == "gzip"
    assert len(packed.data) < len(plain.data)
    assert gzip.decompress(packed.data) == plain.data


def test_what_did_not_change_is_not_sent_again(tmp_path):
    with RunWriter(tmp_path / "run.h5", header(NAMES, NUMEL)) as writer:
        browser = Browser(tmp_path)
        rows = list(measurements(NAMES, NUMEL, 4))
        for row in rows[:3]:
            writer.append(row)
        options, content = browser.ask(writer.path)
        assert "iteration 200" in json.dumps(options)
        assert browser.ask(writer.path) is None
        writer.append(rows[3])
        options, _ = browser.ask(writer.path)
    assert "iteration 300" in json.dumps(options)
    assert "300" in browser.figures["recommendation"][1]["x"]


def test_of_twenty_runs_the_lines_of_one_are_sent(tmp_path):
    rows = list(measurements(NAMES, NUMEL, 4))
    others = [write(tmp_path / f"{i}.h5") for i in range(4)]
    with RunWriter(tmp_path / "run.h5", header(NAMES, NUMEL)) as writer:
        for row in rows[:3]:
            writer.append(row)
        browser = Browser(tmp_path)
        _, first = browser.ask(*others, writer.path)
        writer.append(rows[3])
        _, second = browser.ask(*others, writer.path)
    assert second["html"] is None
    lines = [json.loads(piece) for piece in second["pieces"].values()]
    assert {line["name"] for line in lines if "name" in line} == {"run"}
    assert sum("name" in line for line in lines) == len(browser.figures)
    for layout, *drawn in browser.figures.values():
        assert "yaxis" in layout
        assert [line["name"] for line in drawn] == ["0", "1", "2", "3", "run"]
    last = browser.figures["loss"][-1]
    assert last["hovertemplate"].startswith("iteration %{x}<br>run ")


def test_a_browser_that_lost_what_it_held_gets_all_again(tmp_path):
    path = write(tmp_path / "run.h5")
    browser = Browser(path)
    _, first = browser.ask(path)
    browser.shown = None
    _, again = browser.ask(path)
    assert again == first


def test_a_run_that_is_not_shown_changes_the_list_only(tmp_path):
    path = write(tmp_path / "a.h5")
    browser = Browser(tmp_path)
    browser.ask(path)
    write(tmp_path / "b.h5")
    options, answer = browser.ask(path)
    assert len(options) == 2
    assert answer is None


def test_several_runs_are_compared(tmp_path):
    paths = [write(tmp_path / "a.h5"), write(tmp_path / "b.h5", count=4)]
    browser = Browser(tmp_path)
    browser.ask(*paths)
    assert [trace["name"] for trace in browser.figures["top"][1:]] == ["a", "b"]
    browser.ask(*paths, by="loss")
    assert "loss" not in browser.figures


def test_runs_that_vanish_or_are_none_leave_a_sentence(tmp_path):
    browser = Browser(tmp_path)
    assert "There is no run file" in json.dumps(browser.ask())
    path = write(tmp_path / "a.h5")
    (tmp_path / "notes.h5").write_text("x")
    options, _ = browser.ask(path, tmp_path / "notes.h5")
    assert "eigenvalues" in browser.figures
    assert [option["disabled"] for option in options] == [False, True]
    assert "is not an HDF5 file" in json.dumps(options[1])
    path.unlink()
    browser.ask(path)
    assert "Choose runs above" in browser.html


def test_files_elsewhere_cannot_be_asked_for(tmp_path):
    outside = write(tmp_path / "secret.h5")
    (tmp_path / "served").mkdir()
    write(tmp_path / "served" / "a.h5")
    for path in (outside, tmp_path / "served" / ".." / "secret.h5"):
        browser = Browser(tmp_path / "served")
        browser.ask(path)
        assert "Choose runs above" in browser.html
        assert browser.figures == {}


@pytest.mark.parametrize("count", [0, 2])
def test_empty_and_failed_runs_say_so(tmp_path, count):
    bad = dict(pairs=5, tensors=2, status=Status.FAILED, reason="NaN loss")
    with RunWriter(tmp_path / "run.h5", header(NAMES, NUMEL)) as writer:
        for i in range(count):
            writer.append(Measurement.blank(iteration=i, **bad))
    browser = Browser(tmp_path)
    browser.ask(tmp_path / "run.h5")
    assert "No recommendation yet" in browser.html
    assert ("<b>2×</b> <bdi>NaN loss</bdi>" in browser.html) == (count == 2)


def test_a_foreign_host_name_is_refused(tmp_path):
    assert Browser(tmp_path, host="evil.example").get("/").status_code == 403
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert Browser(tmp_path, host=host).get("/").status_code == 200


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    browser = Browser(tmp_path)
    page = browser.get("/")
    scripts = re.findall(r'src="([^"]*)"', page.text)
    assert scripts
    for source in scripts:
        assert source.startswith("/"), source
        assert browser.get(source).status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "script-src 'self' 'sha256-" in policy
    assert html.static("live.css") in page.text
    assert html.script_hash(html.script("live.js")) in policy
    (inline,) = re.findall(r"<script>(.*?)</script>\s*<footer>", page.text, re.DOTALL)
    assert inline == html.script("live.js")


def test_a_port_in_use_is_one_sentence(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="Choose another port"):
            Server(tmp_path, port=taken.getsockname()[1])
    with pytest.raises(ConfigError, match="Cannot listen on 127.0.0.1:99999"):
        Server(tmp_path, port=99999)


def test_without_dash_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lipprof.record.extras.importlib.import_module",
        lambda name: (_ for _ in ()).throw(ImportError(name)),
    )
    with pytest.raises(MissingExtraError, match=r"`dash`.*pip install 'lipprof\[live\]'"):
        build(tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_command_serves_warns_and_ends_cleanly(tmp_path, host):
    write(tmp_path / "run.h5")
    command = [sys.executable, "-m", "lipprof", "serve", str(tmp_path), "--port", "0"]
    with subprocess.Popen(
        [*command, "--host", host], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            port = int(re.search(r":(\d+) \(Ctrl-C", process.stdout.readline())[1])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=120) as page:
                assert b"lipprof" in page.read()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()  # or leaving the block would wait for it for ever
    assert process.returncode == 0
    assert ("warning: whoever reaches 0.0.0.0" in errors) == (host == "0.0.0.0")
    assert len(errors.splitlines()) == (host == "0.0.0.0")
