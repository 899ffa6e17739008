"""The page in Chromium: it draws every figure, and the console stays empty."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lipprof.record import Measurement
from lipprof.report.page import write_page

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
    "--virtual-time-budget=5000",
]
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

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]


@pytest.fixture
def browse(tmp_path: Path):
    """Open a run's page; return the document after its scripts ran.  Fails on console output."""

    def browse(run, *, script: str = "") -> str:
        page = tmp_path / "page.html"
        write_page(run, page)
        if script:  # acts as the user; the page itself would not let it run
            text = re.sub("<meta http-equiv.*?>", "", page.read_text("utf-8"))
            page.write_text(f"{text}<script>{script}</script>", "utf-8")
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [str(CHROMIUM), *FLAGS, profile, "--dump-dom", page.as_uri()]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
        assert console == []
        return re.sub(r"<script.*?</script>", "", result.stdout, flags=re.DOTALL)

    return browse


def title(dom):
    return re.search(r"<title>(.*?)</title>", dom)[1]


def rows(dom):
    return re.findall(r'<tr[^>]*>\s*<th scope="row"><bdi[^>]*>(.*?)</bdi>', dom)


def test_every_figure_is_drawn(write_run, browse):
    dom = browse(write_run(amos=True))
    figures = re.findall(r'data-figure="(\w+)"', dom)
    assert figures == [
        "recommendation", "assigned", "training", "eigenvalues", "lipschitz", "mass", "regret",
        "trust",
    ]  # fmt: skip
    assert dom.count('class="plot-container') == len(figures)
    assert "h.0.attn.c_attn.weight</text>" in dom


def test_hostile_names_do_nothing(write_run, browse):
    dom = browse(write_run(names=HOSTILE, model_class=HOSTILE[0], optimizer_class=HOSTILE[2]))
    assert "pwned" in title(dom), "the name is shown"
    assert title(dom).startswith("&lt;script&gt;")
    assert "<img" not in dom
    assert not re.findall(r'<[^<>]*href="javascript', dom)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_short_runs_draw_without_complaint(write_run, browse, count):
    blank = [Measurement.blank(pairs=5, tensors=39, iteration=i) for i in range(count)]
    assert "No recommendation yet" in browse(write_run(rows=blank))


def test_two_thousand_tensors_draw_without_complaint(write_run, browse):
    assert len(rows(browse(write_run(layers=333, count=4)))) == 2001


def test_the_table_sorts_and_filters(write_run, browse):
    run = write_run(layers=2)
    click = "document.querySelectorAll('#tensors thead th')[3].click();"
    values = [float(v) for v in column(browse(run, script=click), 3)]
    assert values == sorted(values, reverse=True)
    assert len(values) == len(run.tensor_names)
    values = [float(v) for v in column(browse(run, script=click * 2), 3)]
    assert values == sorted(values)

    filtering = (
        "const f = document.getElementById('filter'); f.value = 'MLP';"
        "f.dispatchEvent(new Event('input'));"
    )
    dom = browse(run, script=filtering)
    visible = [re.sub("<wbr>", "", name) for name in re.findall(
        r'<tr>\s*<th scope="row"><bdi[^>]*>(.*?)</bdi>', dom)]  # fmt: skip
    assert sorted(visible) == sorted(n for n in run.tensor_names if "mlp" in n)


def column(dom, index):
    """Values of a sorted column of numbers: L is the second of the five in a row."""
    body = re.search(r"<tbody>(.*?)</tbody>", dom, re.DOTALL)[1]
    return re.findall(r'data-value="([^"]*)"', body)[index - 2 :: 6]


def test_paper_gets_figures_of_its_width(write_run, browse):
    dom = browse(write_run(layers=1), script="dispatchEvent(new Event('beforeprint'));")
    widths = set(re.findall(r'<svg class="main-svg"[^>]*? width="([\d.]+)"', dom))
    assert widths == {"640"}
