"""The page as text: what is in it, and that nothing gets in."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from lipprof.errors import ConfigError
from lipprof.record import Measurement, Status
from lipprof.report.page import render, write_page
from lipprof.report.sections import sections

HOSTILE = [
    "<script>alert(1)</script>",
    '</script><script>document.title="pwned"</script>',
    "a\"b'c<img src=x onerror=alert(1)>",
    "x" * 400,
    "שלום עולם",
    "\u202edlrow",
    "層.重み",
    "$x^2$",
    "%{x}",
    "{{ 7 * 7 }}",
]
ORDINARY = dict(pairs=5, tensors=39)


class Elements(HTMLParser):
    """Collects what a browser would see: elements with attributes, scripts, text of the table."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts, self.rows = [], [], []
        self._in = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag
        if tag == "bdi" and self.rows is not None:
            self.rows.append("")

    def handle_endtag(self, tag):
        self._in = None if tag == "bdi" else self._in

    def handle_data(self, data):
        if self._in == "script":
            self.scripts.append(data)
        elif self._in in {"bdi", "wbr"}:
            self.rows[-1] += data


def figures_of(page):
    return json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])


def without_plotly(page):
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def test_one_file_and_no_network(write_run):
    page = render(write_run())
    elements = Elements(page)
    for _, attributes in elements.tags:
        assert not {"src", "srcset", "action"} & attributes.keys()
        assert attributes.get("href", "#").startswith("#")
    assert "default-src 'none'" in page
    assert "http" not in without_plotly(page).replace("http-equiv", "")
    assert 4e6 < len(page) < 6e6, "plotly.js once"


def test_hostile_names_stay_text(write_run):
    plain = Elements(render(write_run(name="plain.h5")))
    evil = write_run(names=HOSTILE, model_class="<script>alert(2)</script>", probe="</style>")
    page = render(evil)
    elements = Elements(page)
    assert [t for t, _ in elements.tags if t == "script"] == [
        t for t, _ in plain.tags if t == "script"
    ]
    assert not [t for t, attributes in elements.tags if t == "img" or "onerror" in attributes]
    assert HOSTILE[0] in elements.rows
    assert HOSTILE[2] in elements.rows
    assert "\u202e" not in page
    assert not re.search("<", re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    ticks = figures_of(page)["recommendation"]["data"][0]["y"]
    assert not [t for t in ticks if "<" in t or "$" in t]


def test_the_headline_and_the_table_say_what_the_file_says(write_run):
    run = write_run(layers=1)
    elements = Elements(page := render(run))
    answer = run.recommendation()
    assert f"{100 * answer.first_order_share:.1f}" in re.search(r"<h1>(.*?)</h1>", page)[1]
    assert set(run.tensor_names) <= set(elements.rows)
    values = {a["data-value"] for _, a in elements.tags if "data-value" in a}
    assert {str(float(v)) for v in answer.evidence.lipschitz} <= values


def test_failures_and_their_reasons_are_shown(write_run):
    rows = [
        Measurement.blank(**ORDINARY, iteration=0),
        Measurement.blank(**ORDINARY, iteration=1, status=Status.FAILED, reason="<b>boom</b>"),
    ]
    page = render(write_run(rows=rows))
    assert "&lt;b&gt;boom&lt;/b&gt;" in page
    assert "<b>boom" not in page


INFINITE = dict(
    eigenvalue=np.full(5, np.inf), lipschitz_drift=np.full(5, np.inf), loss=np.inf, time=1e300
)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [Measurement.blank(**ORDINARY, iteration=0)],
        [Measurement.blank(**ORDINARY, iteration=i, status=Status.FAILED) for i in range(3)],
        [Measurement.blank(**ORDINARY, iteration=i) for i in range(3)],
        [Measurement.blank(**ORDINARY, iteration=i, **INFINITE) for i in range(3)],
    ],
    ids=["empty", "one", "all failed", "all NaN", "infinite"],
)
def test_a_run_with_little_in_it_has_a_page(write_run, rows):
    page = render(write_run(rows=rows))
    succeeded = sum(row.status is not Status.FAILED for row in rows)
    expected = f"after {succeeded} measurements" if succeeded > 1 else "yet"
    assert f"No recommendation {expected}" in page
    assert set(figures_of(page)) <= {"training", "eigenvalues", "lipschitz", "trust"}


def test_a_run_without_eigenpairs_or_tensors_has_a_page(write_run):
    rows = [Measurement.blank(pairs=0, tensors=0, iteration=i, loss=1.0) for i in range(3)]
    page = render(write_run(names=[], rows=rows, top=0, bottom=0))
    assert set(figures_of(page)) == {"training", "trust"}


def test_two_thousand_tensors_are_all_in_the_table_and_few_in_the_figures(write_run):
    run = write_run(layers=333, count=3)
    page = render(run)
    assert len(run.tensor_names) > 2000
    assert set(run.tensor_names) <= set(Elements(page).rows)
    assert "the 60 largest of 2,001" in page
    assert len(page) < 9e6


def test_an_unwritable_path_is_one_clear_error(write_run, tmp_path):
    with pytest.raises(ConfigError, match="Cannot write .*no/page.html: No such file"):
        write_page(write_run(), tmp_path / "no" / "page.html")


def test_a_figure_has_the_height_that_is_kept_free_for_it(write_run):
    for layers in (1, 8, 20):
        run = write_run(layers=layers, amos=True, name=f"{layers}.h5")
        for section in sections(run, 19):
            for panel in section.panels:
                assert panel.figure.layout.height == panel.height, panel.id
