"""The live dashboard in Chromium: it draws, follows a writer, and its console stays empty."""

import threading
from contextlib import contextmanager

import pytest

from lipprof.record import RunWriter
from tests.report.browser import bring, bring_all, cursors, hover, names, needs_browser, until
from tests.report.conftest import header, measurements

pytest.importorskip("dash")

from werkzeug.serving import make_server

from lipprof.report.live.server import LOOPBACK, build

NAMES, NUMEL = ("<script>document.title='pwned'</script>", "head", "body"), (300, 100, 200)
ROWS = list(measurements(NAMES, NUMEL, 6))

pytestmark = needs_browser


@contextmanager
def serving(place):
    server = make_server("127.0.0.1", 0, build(place, LOOPBACK).server, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def writing(path, count=3):
    with RunWriter(path, header(NAMES, NUMEL)) as writer:
        for row in ROWS[:count]:
            writer.append(row)
        yield writer


def test_it_draws_and_follows_a_writer(tmp_path, visit):
    with writing(tmp_path / "run.h5") as writer, serving(tmp_path) as url, visit(url) as page:
        page.get_by_text("Eigenvectors over tensors at iteration 200").wait_for()
        bring_all(page)
        assert page.locator(".plot-container").count() == page.locator("[data-figure]").count() >= 7
        bring(page, "training")
        page.evaluate("document.getElementById('training-plot').mark = 1")
        for row in ROWS[3:]:
            writer.append(row)
            page.get_by_text(f"Eigenvectors over tensors at iteration {row.iteration}").wait_for()
            last = "document.getElementById('training-plot')._fullData[0].x.at(-1)"
            until(page, f"{last} === {row.iteration}")
        assert "running · iteration 500" in page.inner_text("#runs")
        assert page.evaluate("document.getElementById('training-plot').mark") == 1, "the same plot"
        assert page.locator(".plot-container").count() == page.locator("[data-figure]").count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_to_be_chosen_can_be_read(scheme, tmp_path, visit):
    with (
        writing(tmp_path / "run.h5"),
        serving(tmp_path) as url,
        visit(url, color_scheme=scheme) as page,
    ):
        page.locator("#answer").wait_for()
        colours = page.evaluate(
            """[...document.querySelectorAll('#runs b, #by label, h1')].map(
                 element => getComputedStyle(element).color)"""
        )
        assert len(colours) >= 5
        assert set(colours) == {colours[-1]}, "that of headings"


def test_table_cursor_and_zoom_outlive_a_measurement(tmp_path, visit):
    size = {"width": 1200, "height": 900}
    with (
        writing(tmp_path / "run.h5", 5) as writer,
        serving(tmp_path) as url,
        visit(url, viewport=size) as page,
    ):
        page.locator("#tensors thead button", has_text="Tensor").click()
        assert names(page) == ["head", "body", NAMES[0]]
        page.fill("#filter", "D")
        assert names(page) == ["head", "body", NAMES[0]]
        page.fill("#filter", "ea")
        assert names(page) == ["head"]
        bring_all(page)
        page.evaluate("Plotly.relayout('training-plot', {'xaxis.range': [50, 350]})")
        until(page, "document.getElementById('trust-plot').layout.xaxis.range[1] === 350")
        writer.append(ROWS[5])
        page.get_by_text("Eigenvectors over tensors at iteration 500").wait_for()
        assert names(page) == ["head"]
        assert page.input_value("#filter") == "ea"
        assert page.evaluate("document.activeElement.id") == "filter"
        page.fill("#filter", "")
        assert names(page) == ["head", "body", NAMES[0]]
        for figure in ("training", "trust", "eigenvalues"):
            range_ = f"document.getElementById('{figure}-plot')._fullLayout.xaxis.range"
            until(page, f"String({range_}) === '50,350'")
        hover(page, "eigenvalues")
        until(page, "document.querySelectorAll('.cursor:not([hidden])').length > 3")
        assert set(cursors(page).values()) == {200}


def test_runs_are_compared_as_they_are_chosen(tmp_path, visit):
    for name in ("a", "b"):
        with writing(tmp_path / f"{name}.h5", 4):
            pass
    with serving(tmp_path) as url, visit(url) as page:
        page.locator("#answer").wait_for()
        for box in page.locator("#runs input").all():
            box.check()
        page.get_by_text("2 runs by iteration").wait_for()
        bring(page, "top")
        until(page, "document.querySelectorAll('#top-plot .legendtext').length === 2")
        page.get_by_text("by loss").click()
        page.get_by_text("2 runs by loss").wait_for()
        assert page.locator("#loss-plot").count() == 0


def test_hostile_names_do_nothing(tmp_path, visit):
    with writing(tmp_path / '"><img src=x>.h5'), serving(tmp_path) as url, visit(url) as page:
        page.locator("#tensors").wait_for()
        assert NAMES[0] in names(page), "the name is shown"
        assert page.title() == "lipprof"
        assert page.locator("img").count() == 0
