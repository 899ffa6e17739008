"""The README's pictures: train the demonstration's GPT, write its page, photograph it in Chromium.

    pip install playwright
    python docs/screenshots.py

Needs Chromium on the path.  Training takes minutes on two cores; ``--run`` takes the pictures of a
run file that exists.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch

import lipprof
from lipprof.demo.gpt import CharGPT
from lipprof.demo.text import load_text
from lipprof.demo.train import build_amos, default_second
from lipprof.report.page import write_page

ITERATIONS, EVERY = 160, 10
BATCH = {"size": 16, "length": 32}
WIDTH, HEIGHT = 1100, 1000


def train(out: Path) -> None:
    """Train the GPT under AMOS and record its surface, L by every estimator."""
    torch.manual_seed(0)
    text, generator = load_text(), torch.Generator().manual_seed(0)
    model = CharGPT(text.vocabulary, length=BATCH["length"], layers=2, width=64)
    optimizer = build_amos(model, default_second())
    probe = text.batch("train", generator=generator, **BATCH)
    with lipprof.attach(
        model,
        optimizer,
        out,
        loss=lambda model: model.loss(probe),
        every=EVERY,
        top=3,
        bottom=2,
        lipschitz="all",
    ):
        for _ in range(ITERATIONS):
            loss = model.loss(text.batch("train", generator=generator, **BATCH))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def photograph(page: Path, out: Path) -> None:
    """Save the answer, and a section with the cursor over one of its figures."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        tab.goto(page.as_uri())
        tab.screenshot(path=out / "answer.png")
        figure = tab.locator("#eigenvalues-plot")
        figure.evaluate(
            """plot => scrollTo({
                top: scrollY + plot.getBoundingClientRect().top - 180, behavior: "instant",
            })"""
        )
        figure.locator(".nsewdrag").first.hover(position={"x": 400, "y": 60})
        tab.screenshot(path=out / "stability.png")
        browser.close()


def main() -> None:
    """Parse, train, photograph."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the pictures")
    parser.add_argument("--run", type=Path, help="run file; default: train anew")
    arguments = parser.parse_args()
    arguments.out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.run or Path(folder) / "gpt.h5"
        if arguments.run is None:
            train(path)
        page = Path(folder) / "gpt.html"
        with lipprof.open_run(path) as run:
            write_page(run, page)
        photograph(page, arguments.out)


if __name__ == "__main__":
    main()
