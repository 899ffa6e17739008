"""What the tests of pages ask of a page in Chromium."""

import shutil
import time

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PLACED = "[...document.querySelectorAll('.cursor')].filter(line => !line.hidden)"

needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]


def names(page):
    """Tensors of the table that are shown, in its order."""
    return page.locator("#tensors tbody tr:not([hidden]) bdi").all_inner_texts()


def cursors(page):
    """Where the linked cursor stands: figure to iteration."""
    pairs = page.evaluate(
        f"{PLACED}.map(line => [line.parentElement.dataset.figure, Number(line.dataset.value)])"
    )
    return dict(pairs)


def bring(page, figure):
    """Scroll to a figure, which is drawn then."""
    plot = f"document.getElementById('{figure}-plot')"
    until(page, plot)
    page.evaluate(f"{plot}.scrollIntoView({{ behavior: 'instant' }})")
    until(page, f"{plot}.classList.contains('js-plotly-plot')")


def bring_all(page):
    """Scroll through the page, so that all of its figures are drawn."""
    for figure in page.eval_on_selector_all(
        "[data-figure]", "all => all.map(e => e.dataset.figure)"
    ):
        bring(page, figure)
    page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")


def hover(page, figure, x=0.5):
    """Point at a share of the width of a figure's first plot."""
    plot = page.locator(f"#{figure}-plot .nsewdrag").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + box["height"] / 2)


def until(page, condition, seconds=60):
    """Wait for a condition of JavaScript, which the page's policy forbids the page to poll."""
    end = time.monotonic() + seconds
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)
