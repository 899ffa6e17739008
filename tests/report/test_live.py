"""The live dashboard as its browser sees it: questions, answers, and what it refuses."""

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
from lipprof.record import Measurement, RunWriter, Status
from lipprof.report import html
from tests.report.conftest import header, measurements

pytest.importorskip("dash")

from lipprof.report.live.server import LOOPBACK, Server, build

NAMES, NUMEL = ("body", "head"), (300, 100)
OUTPUTS = [("runs", "options"), ("content", "children"), ("shown", "data")]


class Browser:
    """Asks as Dash's renderer does."""

    def __init__(self, place, host="127.0.0.1"):
        self.client = build(place, LOOPBACK).server.test_client()
        self.headers = {"Host": f"{host}:8050"}
        self.shown = None

    def get(self, path):
        return self.client.get(path, headers=self.headers)

    def ask(self, *chosen, by="iteration"):
        """The list of runs and the content, None where it did not change; None: neither did."""
        body = {
            "output": f"..{'...'.join('.'.join(output) for output in OUTPUTS)}..",
            "outputs": [{"id": i, "property": p} for i, p in OUTPUTS],
            "inputs": [
                {"id": "tick", "property": "n_intervals", "value": 1},
                {"id": "runs", "property": "value", "value": [str(path) for path in chosen]},
                {"id": "by", "property": "value", "value": by},
            ],
            "changedPropIds": ["tick.n_intervals"],
            "state": [{"id": "shown", "property": "data", "value": self.shown}],
        }
        answer = self.client.post("/_dash-update-component", json=body, headers=self.headers)
        assert answer.status_code == 200, answer.text
        response = answer.json["response"]
        if not response:
            return None
        self.shown = response["shown"]["data"]
        parts = [("runs", "options"), ("content", "children")]
        return tuple(response.get(i, {}).get(name) for i, name in parts)


def figures(content):
    """Graphs by their ids."""
    found = {}

    def walk(part):
        if isinstance(part, list):
            for item in part:
                walk(item)
        elif isinstance(part, dict) and "props" in part:
            if part["type"] == "Graph":
                found[part["props"]["id"].removesuffix("-graph")] = part["props"]["figure"]
            walk(part["props"].get("children"))

    walk(content)
    return found


def write(path, count=3, amos=False, **changes):
    with RunWriter(path, header(NAMES, NUMEL, **changes)) as writer:
        for row in measurements(NAMES, NUMEL, count, amos=amos):
            writer.append(row)
    return path


def test_one_run_shows_the_figures_of_the_page(tmp_path):
    path = write(tmp_path / "run.h5", amos=True)
    _, content = Browser(path).ask(path)
    shown = figures(content)
    assert shown.keys() == {
        "recommendation", "assigned", "training", "eigenvalues", "lipschitz", "mass", "regret",
        "trust",
    }  # fmt: skip
    assert "of the parameters" in json.dumps(content[0])


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
        options, content = browser.ask(writer.path)
    assert "iteration 300" in json.dumps(options)
    assert "300" in figures(content)["recommendation"]["data"][0]["x"]


def test_a_run_that_is_not_shown_changes_the_list_only(tmp_path):
    path = write(tmp_path / "a.h5")
    browser = Browser(tmp_path)
    browser.ask(path)
    write(tmp_path / "b.h5")
    options, content = browser.ask(path)
    assert len(options) == 2
    assert content is None


def test_several_runs_are_compared(tmp_path):
    paths = [write(tmp_path / "a.h5"), write(tmp_path / "b.h5", count=4)]
    browser = Browser(tmp_path)
    _, content = browser.ask(*paths)
    shown = figures(content)
    assert [t["name"] for t in shown["top"]["data"]] == ["a", "b"]
    _, content = browser.ask(*paths, by="loss")
    assert "loss" not in figures(content)


def test_runs_that_vanish_or_are_none_leave_a_sentence(tmp_path):
    browser = Browser(tmp_path)
    assert "There is no run file" in json.dumps(browser.ask())
    path = write(tmp_path / "a.h5")
    (tmp_path / "notes.h5").write_text("x")
    options, content = browser.ask(path, tmp_path / "notes.h5")
    assert "eigenvalues" in figures(content)
    assert [option["disabled"] for option in options] == [False, True]
    assert "is not an HDF5 file" in json.dumps(options[1])
    path.unlink()
    _, content = browser.ask(path)
    assert "Choose runs above" in json.dumps(content)


def test_files_elsewhere_cannot_be_asked_for(tmp_path):
    outside = write(tmp_path / "secret.h5")
    (tmp_path / "served").mkdir()
    write(tmp_path / "served" / "a.h5")
    for path in (outside, tmp_path / "served" / ".." / "secret.h5"):
        _, content = Browser(tmp_path / "served").ask(path)
        assert figures(content) == {}


@pytest.mark.parametrize("count", [0, 2])
def test_empty_and_failed_runs_say_so(tmp_path, count):
    bad = dict(pairs=5, tensors=2, status=Status.FAILED, reason="NaN loss")
    with RunWriter(tmp_path / "run.h5", header(NAMES, NUMEL)) as writer:
        for i in range(count):
            writer.append(Measurement.blank(iteration=i, **bad))
    _, content = Browser(tmp_path).ask(tmp_path / "run.h5")
    assert "No recommendation yet" in json.dumps(content)
    assert ("failed 2x: NaN loss" in json.dumps(content)) == (count == 2)


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
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as page:
                assert b"lipprof" in page.read()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()  # or leaving the block would wait for it for ever
    assert process.returncode == 0
    assert ("warning: whoever reaches 0.0.0.0" in errors) == (host == "0.0.0.0")
    assert len(errors.splitlines()) == (host == "0.0.0.0")
