import math

import numpy as np
import pytest

from lipprof.report.formats import (
    MISSING,
    duration,
    number,
    percent,
    plural,
    printable,
    quantity,
    sparkline,
)


@pytest.mark.parametrize("value", [0.0123, 1.5, 999.4, -12.3, 1e-30, -7.1e12, 999.6, 0.00999])
def test_number_is_short_and_right_to_three_digits(value):
    text = number(value)
    assert len(text) <= 9
    assert float(text) == pytest.approx(value, rel=5.1e-3)


def test_number_says_what_is_not_a_number():
    assert [number(x) for x in (math.nan, math.inf, -math.inf, 0.0)] == [MISSING, "∞", "-∞", "0"]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1e-5, "<0.1 %"), (0.5, "50 %"), (0.123, "12.3 %"), (0.9999, ">99.9 %"),
     (1, "100 %"), (math.nan, MISSING)],
)  # fmt: skip
def test_percent_rounds_nothing_to_all_or_nothing(share, text):
    assert percent(share) == text


def test_counts_and_durations():
    assert [quantity(n) for n in (7, 9999, 10_000, 124_439_808)] == ["7", "9,999", "10 k", "124 M"]
    assert [plural(n, "tensor") for n in (0, 1, 2000)] == ["0 tensors", "1 tensor", "2,000 tensors"]
    assert [duration(s) for s in (0.25, 59.94, 250, 7500)] == [
        "0.25 s",
        "59.9 s",
        "4 min 10 s",
        "2 h 05 min",
    ]


def test_printable_removes_escapes_and_writing_direction():
    assert printable("\x1b[31mred\u202e\n") == "\ufffd[31mred\ufffd\ufffd"
    assert printable("層.重み שלום") == "層.重み שלום"


@pytest.mark.parametrize("limit", [1, 2, 9, 10])
def test_printable_cuts_the_middle(limit):
    text = printable("transformer.weight", limit)
    assert len(text) == limit
    assert "…" in text
    assert limit < 3 or (text[0], text[-1]) == ("t", "t")


def test_sparkline_follows_the_series_and_shows_gaps():
    assert sparkline([0, 1, math.nan, 7]) == "▁▂ █"
    assert sparkline([1, 10, 100, 1000], 4) == "▁▃▆█"  # logarithmic: equal ratios, equal steps
    assert sparkline([]) == ""
    assert sparkline([math.nan, math.inf]) == "  "
    assert sparkline([3, 3]) == "▅▅"
    assert len(sparkline(np.arange(1000), 24)) == 24
