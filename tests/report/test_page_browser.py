"""The page in Chromium: it draws every figure, links them, and the console stays empty."""

import re

import pytest

from lipprof.record import Measurement
from lipprof.report.page import write_page
from tests.report.browser import bring_all, cursors, hover, names, needs_browser, until

HOSTILE = [
    "<script>document.title='pwned'</script>",
    "</script><script>document.title='pwned'</script>",
    '"><img src=x onerror="document.title=\'pwned\'">',
    "<a href=\"javascript:document.title='pwned'\">x</a>",
    "x" * 400,
    "\u202eשלום",
    "$\\href{javascript:alert(1)}{x}$",
    "%{customdata}",
    "1",
    "1.0",
]
OVER_TIME = {"recommendation", "assigned", "share", "training", "eigenvalues", "lipschitz",
             "regret", "trust"}  # fmt: skip

pytestmark = needs_browser


@pytest.fixture
def browse(tmp_path, visit):
    """Write and open a run's page."""

    def browse(run, **options):
        write_page(run, tmp_path / "page.html")
        return visit((tmp_path / "page.html").as_uri(), **options)

    return browse


def figures(page):
    return page.evaluate(
        "[...document.querySelectorAll('[data-figure]')].map(e => e.dataset.figure)"
    )


def drawn(page):
    return page.locator(".plot-container").count()


def test_every_figure_is_drawn(write_run, browse):
    page = browse(write_run(amos=True))
    assert set(figures(page)) == OVER_TIME | {"mass"}
    assert drawn(page) < len(figures(page)), "those far from the screen wait"
    bring_all(page)
    assert drawn(page) == len(figures(page))
    ticks = page.locator("#recommendation-plot .ytick").all_text_contents()
    assert "h.0.attn.c_attn.weight" in ticks


def test_hostile_names_do_nothing(write_run, browse):
    page = browse(write_run(names=HOSTILE, model_class=HOSTILE[0], optimizer_class=HOSTILE[2]))
    assert page.title().startswith("<script>document.title='pwned'"), "the name is shown"
    assert page.locator("img").count() == 0
    assert page.locator("a[href^=javascript]").count() == 0
    assert HOSTILE[0] in names(page)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_short_runs_draw_without_complaint(write_run, browse, count):
    blank = [Measurement.blank(pairs=5, tensors=39, iteration=i) for i in range(count)]
    assert browse(write_run(rows=blank)).inner_text("h1").startswith("No recommendation")


def test_two_thousand_tensors_draw_without_complaint(write_run, browse):
    assert len(names(browse(write_run(layers=333, count=4)))) == 2001


def test_the_table_sorts_and_filters(write_run, browse):
    run = write_run(layers=2)
    page = browse(run)

    def values():
        cells = page.locator("#tensors tbody td:nth-child(4)")
        return cells.evaluate_all("cells => cells.map(cell => Number(cell.dataset.value))")

    heading = page.locator("#tensors thead button", has_text=re.compile("^L$"))
    heading.click()
    assert values() == sorted(values(), reverse=True)
    assert len(values()) == len(run.tensor_names)
    heading.click()
    assert values() == sorted(values())
    page.fill("#filter", "MLP")
    assert sorted(names(page)) == sorted(n for n in run.tensor_names if "mlp" in n)


def test_one_cursor_stands_in_every_figure_over_time(write_run, browse):
    page = browse(write_run(amos=True), viewport={"width": 1200, "height": 900})
    bring_all(page)
    hover(page, "eigenvalues", 0.5)
    until(page, "document.querySelectorAll('.cursor:not([hidden])').length > 1")
    there = cursors(page)
    assert there.keys() == OVER_TIME, "not over the pairs of an eigenvector's mass"
    assert len(set(there.values())) == 1
    (iteration,) = set(there.values())
    assert abs(iteration - 950) < 60, "half of 0 to 1,900"
    drawn_at = page.evaluate(
        """[...document.querySelectorAll('.cursor')].map(line => {
            const { xaxis } = line.parentElement._fullLayout;
            const x = line.getBoundingClientRect().left - xaxis._offset
                - line.parentElement.getBoundingClientRect().left;
            return xaxis.type === 'category' ? 100 * Math.round(xaxis.p2l(x)) : xaxis.p2l(x);
        })"""
    )
    for value in drawn_at:
        assert abs(value - iteration) <= 50, "heat maps have a column per 100 iterations"
    hover(page, "recommendation", 0.01)
    until(page, "document.querySelector('.cursor').dataset.value === '0'")
    assert set(cursors(page).values()) == {0}
    page.mouse.move(2, 2)
    until(page, "!document.querySelector('.cursor:not([hidden])')")


def test_one_zoom_for_every_figure_over_time(write_run, browse):
    page = browse(write_run(amos=True))
    bring_all(page)
    ranges = """Object.fromEntries([...document.querySelectorAll('[data-figure]')].map(
        e => [e.dataset.figure, [e.layout.xaxis.type, ...e._fullLayout.xaxis.range]]))"""
    before = page.evaluate(ranges)
    assert before["assigned"] == before["recommendation"] == ["category", -0.5, 19.5]
    page.evaluate("Plotly.relayout('training-plot', {'xaxis.range': [400, 900]})")
    until(page, "document.getElementById('trust-plot').layout.xaxis.range[0] === 400")
    after = page.evaluate(ranges)
    for figure in OVER_TIME:
        expected = [3.5, 9.5] if after[figure][0] == "category" else [400, 900]
        assert after[figure][1:] == expected, figure
    assert after["mass"] == before["mass"]
    page.evaluate("Plotly.relayout('regret-plot', {'xaxis.range': [9.5, 12.5]})")
    until(page, "document.getElementById('trust-plot').layout.xaxis.range[0] === 1000")
    page.evaluate("Plotly.relayout('trust-plot', {'xaxis.autorange': true})")
    until(page, "document.getElementById('training-plot').layout.xaxis.autorange")
    again = page.evaluate(ranges)
    assert again["recommendation"] == before["recommendation"]


def test_paper_gets_figures_of_its_width(write_run, browse):
    page = browse(write_run(layers=1))
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    widths = "[...document.querySelectorAll('.main-svg')].map(e => e.getAttribute('width'))"
    assert set(page.evaluate(widths)) == {"640"}
    assert drawn(page) == len(figures(page)), "also those that were not on the screen yet"


def test_a_phone_scrolls_down_and_not_sideways(write_run, browse):
    phone = {"width": 390, "height": 844}
    page = browse(write_run(amos=True), viewport=phone, color_scheme="dark")
    bring_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert drawn(page) == len(figures(page))
