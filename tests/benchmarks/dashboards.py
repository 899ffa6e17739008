"""How long the dashboards take: ``python -m tests.benchmarks.dashboards``.

Writes synthetic runs, serves them from a process of its own, looks at them in Chromium without a
GPU, and appends to one of them.  Wall time counts from the question to the frame that shows the
answer: all figures on the screen, or all of the page, which is scrolled through.  CPU time is that
of the processes, children included.  Linux only; wants ``lipprof[dev]`` and Chromium.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import h5py
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from lipprof.record import RunWriter, open_run
from lipprof.record.files import SWMR_LIBVER
from lipprof.record.layout import create_layout, root_attributes
from lipprof.record.schema import VARIABLES
from lipprof.report.page import write_page
from lipprof.settings import Settings
from tests.headers import run_header

TOP, BOTTOM = 5, 5
ON_SCREEN = """[...document.querySelectorAll('[data-figure]')].filter(plot => {
  const box = plot.getBoundingClientRect();
  return box.top < innerHeight && box.bottom > 0;
})"""
DRAWN = f"""document.querySelector('#answer, #overlays') !== null && {ON_SCREEN}.every(
  plot => plot.classList.contains('js-plotly-plot'))"""
PATIENCE_S = 60
PAGE_MEASUREMENTS = 1000


def write_run(path: Path, measurements: int, tensors: int, seed: int) -> None:
    """Write a run with everything recorded, as fast as HDF5 takes it."""
    rng = np.random.default_rng(seed)
    names = [f"transformer.h.{i // 6}.part{i % 6}.weight" for i in range(tensors)]
    numel = rng.choice([384, 147_456, 442_368, 589_824], tensors).tolist()
    header = run_header(
        top=TOP,
        bottom=BOTTOM,
        tensor_names=tuple(names),
        tensor_numel=tuple(numel),
        model_class="GPT",
        optimizer_class="AMOS",
        probe="synthetic",
        settings=Settings(top=TOP, bottom=BOTTOM, lipschitz="all").to_toml(),
    )
    sizes = {"measurement": measurements, "pair": TOP + BOTTOM, "tensor": tensors}
    series = plausible(rng, measurements, tensors)
    with h5py.File(path, "w", libver=SWMR_LIBVER) as file:
        create_layout(file, header, root_attributes(header))
        file["measurement"].resize(measurements, axis=0)
        for variable in (v for v in VARIABLES if v.name in file):
            shape = tuple(sizes[axis] for axis in variable.axes)
            file[variable.name].resize(measurements, axis=0)
            value = series.get(variable.name)
            if value is None and variable.dtype == "f8":
                value = np.exp(rng.standard_normal(shape))
            if value is not None:
                file[variable.name][...] = np.broadcast_to(value, shape)
        file["run_seconds"][()] = 60.0 * measurements
        file["n_valid"][()] = measurements
        file["finished"][()] = 1


def plausible(rng: np.random.Generator, count: int, tensors: int) -> dict[str, Any]:
    """What has a range or a meaning; the rest may be any positive number."""
    pairs, progress = TOP + BOTTOM, np.linspace(0, 1, count)
    sharpness = 4 + 60 * np.exp(-(((progress - 0.6) / 0.35) ** 2))
    noise = 1 + 0.05 * rng.standard_normal((count, pairs))
    decay = np.concatenate([0.8 ** np.arange(TOP), -0.15 * 0.8 ** np.arange(BOTTOM)[::-1]])
    eigenvalue = np.sort(sharpness[:, None] * decay * noise, axis=1)[:, ::-1]
    converged = (rng.random((count, pairs)) > 0.02).astype(np.int8)
    residual = 10 ** rng.uniform(-5, -3.1, (count, pairs)) * sharpness[:, None]
    choice = np.where(rng.random(tensors) + 0.3 * progress[:, None] > 0.7, 1, 2)
    flips = rng.random((count, tensors)) < 0.01
    return {
        "iteration": 10 * np.arange(count),
        "time": 1.7e9 + 60.0 * np.arange(count),
        "seconds": 2.5,
        "num_matvecs": 120,
        "learning_rate": 3e-2 * (1 - 0.9 * progress),
        "loss": 1.2 + 4.2 * np.exp(-2 * progress) + 0.05 * rng.standard_normal(count),
        "eigenvalue": eigenvalue,
        "residual": residual,
        "converged": converged,
        "match": np.where(rng.random((count, pairs)) < 0.02, 3, 2),
        "overlap": rng.uniform(0.3, 1, (count, pairs)),
        "principal_angle": rng.uniform(0, 1.5, (count, pairs)),
        "grad_projection": -np.abs(rng.standard_normal((count, pairs))),
        "concave_share": rng.uniform(0, 1, count),
        "lipschitz_noise": rng.uniform(0, 1, (count, pairs)),
        "eigenvector_mass": rng.dirichlet(np.full(tensors, 0.1), pairs),
        "lipschitz_mass": rng.dirichlet(np.full(tensors, 0.1), pairs),
        "recommendation": np.where(flips, 3 - choice, choice),
        "assigned": choice,
    }


class Clock:
    """Wall seconds, and CPU seconds of the server's and of the browser's processes."""

    def __init__(self, server: int, browser: int) -> None:
        self._roots = {"server": server, "browser": browser}
        self.restart()

    def restart(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = {name: cpu_seconds(pid) for name, pid in self._roots.items()}

    def read(self) -> dict[str, float]:
        spent = {name: cpu_seconds(pid) - self._cpu[name] for name, pid in self._roots.items()}
        return {"wall": time.perf_counter() - self._wall, **spent}


def cpu_seconds(root: int) -> float:
    """Of a process and all its descendants that live."""
    ticks, children = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks[int(folder.name)] = int(fields[11]) + int(fields[12])
        children.setdefault(int(fields[1]), []).append(int(folder.name))
    family = [root]
    for pid in family:
        family += children.get(pid, [])
    return sum(ticks.get(pid, 0) for pid in family) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served(place: Path) -> Iterator[tuple[str, int]]:
    """Address and process of a server."""
    command = [sys.executable, "-u", "-m", "lipprof", "serve", str(place), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in process.stdout:
            if found := re.search(r"http://[\d.:]+", line):
                yield found[0], process.pid
                return
        raise RuntimeError("The server said no address.")
    finally:
        process.terminate()
        process.wait()


@contextmanager
def chromium(folder: Path) -> Iterator[tuple[Any, int]]:
    """A browser context with a cache on disk, and its process."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder,
            executable_path=shutil.which("chromium"),
            viewport={"width": 1280, "height": 900},
        )
        yield context, _pid_with(str(folder))
        context.close()


def _pid_with(argument: str) -> int:
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
        ours = any(argument in word for word in words) and "chrom" in words[0]
        if ours and not any("--type=" in word for word in words):
            pids.append(int(folder.name))
    return min(pids)


def until(page: Any, condition: str) -> None:
    """Wait for a condition, then for the frame after it."""
    end = time.monotonic() + PATIENCE_S
    while not page.evaluate(f"Boolean({condition})"):
        if time.monotonic() > end:
            raise TimeoutError(condition)
        page.wait_for_timeout(20)
    page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")


def scroll_through(page: Any) -> None:
    """Bring every figure onto the screen."""
    for name in page.eval_on_selector_all("[data-figure]", "all => all.map(plot => plot.id)"):
        plot = f"document.getElementById('{name}')"
        page.evaluate(f"{plot}.scrollIntoView({{ behavior: 'instant' }})")
        until(page, f"{plot}.classList.contains('js-plotly-plot') && {DRAWN}")
    page.evaluate("scrollTo(0, 0)")


def received(page: Any) -> float:
    """Bytes that came over the network since the last time, as they were sent."""
    size = page.evaluate(
        "performance.getEntriesByType('resource').reduce((sum, e) => sum + e.transferSize, 0)"
    )
    page.evaluate("performance.clearResourceTimings()")
    return float(size)


def measure_page(folder: Path, tensors: int, repetitions: int, say: Any) -> None:
    """Write the HTML file of a run of a thousand measurements."""
    path, page = folder / "thousand.h5", folder / "thousand.html"
    write_run(path, PAGE_MEASUREMENTS, tensors, seed=0)
    for _ in range(repetitions):
        wall, cpu = time.perf_counter(), time.process_time()
        with open_run(path) as run:
            write_page(run, page)
        spent = {"wall": time.perf_counter() - wall, "server": time.process_time() - cpu}
        say("HTML file of 1,000 measurements", spent | {"browser": 0.0}, page.stat().st_size)


def measure_live(runs: Path, repetitions: int, say: Any) -> None:
    """Load, follow and compare the runs of a folder."""
    paths = sorted(runs.glob("*.h5"))
    newest = paths[-1]
    with (
        TemporaryDirectory() as profile,
        served(runs) as (url, server),
        chromium(Path(profile)) as (context, browser),
        RunWriter.resume(newest) as writer,
        open_run(newest) as run,
    ):
        page, clock = context.pages[0], Clock(server, browser)
        row = run.measurement(-1)
        for visit in range(1 + repetitions):
            clock.restart()
            page.goto(url)
            until(page, DRAWN)
            say("first visit" if visit == 0 else "later visit", clock.read(), received(page))
            clock.restart()
            scroll_through(page)
            say("  scrolled through", clock.read(), received(page))
        boxes = page.locator("#runs input")
        for name in ("one run", "all compared"):
            if name == "all compared":
                clock.restart()
                for box in boxes.all():
                    box.check()
                until(page, f"document.getElementById('overlays') && {DRAWN}")
                say("all chosen, one by one", clock.read(), received(page))
                page.wait_for_timeout(1500)
            for _ in range(repetitions):
                row = _next(row)
                page.wait_for_timeout(1000)
                received(page)
                clock.restart()
                writer.append(row)
                until(page, _shows(name, row.iteration))
                say(f"new measurement, {name}", clock.read(), received(page))


def _next(row: Any) -> Any:
    from dataclasses import replace

    return replace(row, iteration=row.iteration + 10, time=row.time + 60, loss=row.loss * 0.99)


def _shows(what: str, iteration: int) -> str:
    """Whether the text and every figure on the screen have come to an iteration."""
    if what == "one run":
        return f"document.getElementById('run')?.textContent.includes('to {iteration:,}')"
    return f"{ON_SCREEN}.every(plot => plot._fullData?.some(line => line.x.at(-1) === {iteration}))"


def main(
    runs: Annotated[int, typer.Option(min=1)] = 20,
    measurements: Annotated[int, typer.Option(min=2)] = 5000,
    tensors: Annotated[int, typer.Option(min=1)] = 200,
    repetitions: Annotated[int, typer.Option(min=1)] = 5,
    folder: Annotated[
        Path | None, typer.Option(help="Of the synthetic runs, kept and used again.")
    ] = None,
) -> None:
    """Measure the HTML page and the live dashboard."""
    err = Console(stderr=True)
    table = Table("what", "wall", "CPU server", "CPU browser", "received")
    samples: dict[str, list[tuple[float, ...]]] = {}

    def say(what: str, spent: dict[str, float], size: float) -> None:
        samples.setdefault(what, []).append((*spent.values(), size))
        err.print(what, *(f"{value:.2f}" for value in spent.values()), f"{size:,.0f}", style="dim")

    with TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        place.mkdir(exist_ok=True)
        for i in range(runs):
            if not (path := place / f"run{i:02}.h5").exists():
                write_run(path, measurements, tensors, i)
        measure_page(Path(temporary), tensors, repetitions, say)
        measure_live(place, repetitions, say)
    for what, values in samples.items():
        wall, server, browser, size = np.median(values, axis=0)
        low, high = np.min(values, axis=0)[0], np.max(values, axis=0)[0]
        table.add_row(
            what, f"{wall:.2f} s ({low:.2f} to {high:.2f})", f"{server:.2f} s",
            f"{browser:.2f} s", f"{size / 1e3:,.0f} kB",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
