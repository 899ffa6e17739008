"""What AMOS moved, when and why, rebuilt from a run file and shown."""

import html

import pytest
from rich.console import Console

from lipprof.advice import Choice
from lipprof.record import answers
from lipprof.report import tables
from lipprof.report.derived import latest
from lipprof.report.document import document
from lipprof.report.page import render
from lipprof.settings import Settings


@pytest.mark.parametrize("block", [1, 3, 256])
def test_switches_come_with_the_reason_that_was_recorded_for_them(write_run, monkeypatch, block):
    """Where AMOS did as was recommended; the synthetic AMOS followed a neighbour's answer."""
    monkeypatch.setattr(answers, "BLOCK_ROWS", block)
    run = write_run(amos=True)
    position = {int(i): k for k, i in enumerate(run["iteration"])}
    known = 0
    for switch in run.switches():
        row = position[switch.iteration]
        assert {switch.before, switch.to} == {Choice.FIRST, Choice.SECOND}
        if run["recommendation"][row, switch.tensor] == switch.to:
            assert switch.reason == run.recommendation(row).reason(switch.tensor)
            known += 1
        else:
            assert switch.reason == "not by the recommendation of this run"
    assert 0 < known < len(run.switches())
    assert write_run(name="other.h5").switches() == []


def test_switches_are_shown_with_their_reasons(write_run):
    run = write_run(amos=True)
    last = run.switches()[-1]
    console = Console(width=200)
    with console.capture() as capture:
        console.print(tables.report(run, latest(run)))
    shown = capture.get()
    assert "AMOS moved" in shown
    assert f"and {len(run.switches()) - tables.SWITCHES} before (--all)" in shown
    page = render(run)
    assert page.count('<th scope="row"><bdi>') >= len(run.switches())
    assert html.escape(last.reason) in page
    listed = document(run, latest(run))["switches"]
    assert [entry["reason"] for entry in listed] == [switch.reason for switch in run.switches()]


def test_an_inverted_rule_does_not_claim_to_ask_for_first_order_above_a_limit(write_run):
    claim = "it asks for first-order"
    assert claim in render(write_run(name="plain.h5"))
    settings = Settings(top=3, bottom=2, rule="inverted(rule=newton-safe)").to_toml()
    assert claim not in render(write_run(settings=settings))
