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
