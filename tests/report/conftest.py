"""Synthetic runs: plausible, and written through ``RunWriter`` so that the file is a real one."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from lipprof.advice import Advisor, Evidence
from lipprof.record.measurement import Measurement, Status
from lipprof.record.reader import Run, open_run
from lipprof.record.schema import RunHeader
from lipprof.record.writer import RunWriter
from lipprof.settings import Settings
from tests.headers import run_header
from tests.report.browser import CHROMIUM

TOP, BOTTOM = 3, 2


def gpt_names(layers: int) -> list[str]:
    names = ["transformer.wte.weight", "transformer.wpe.weight"]
    for i in range(layers):
        names += [
            f"transformer.h.{i}.{part}.weight"
            for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        ]
    return [*names, "transformer.ln_f.weight"]


def gpt_numel(name: str) -> int:
    sizes = {"wte": 65 * 384, "wpe": 256 * 384, "c_attn": 3 * 384**2, "attn.c_proj": 384**2}
    return next((n for part, n in sizes.items() if part in name), 384 if "ln_" in name else 589_824)


def header(names: Sequence[str], numel: Sequence[int], **changes) -> RunHeader:
    fields = dict(
        tensor_names=tuple(names),
        tensor_numel=tuple(numel),
        top=TOP,
        bottom=BOTTOM,
        model_class="GPT",
        optimizer_class="AdamW",
        probe="512 sequences of 256 tokens, eval mode, mean",
        settings=Settings(top=TOP, bottom=BOTTOM).to_toml(),
    )
    return run_header(**(fields | changes))


def measurements(names: Sequence[str], numel: Sequence[int], count: int, *, amos: bool = False):
    """A sharpening, then flattening surface; two flaws: one failure, one pair unconverged."""
    rng = np.random.default_rng(0)
    advisor = Advisor(names)
    tensors, pairs = len(names), TOP + BOTTOM
    base = 10 ** rng.uniform(-5, -2, tensors)
    for k in range(count):
        progress = k / max(1, count - 1)
        if k == 7:
            yield Measurement.blank(
                pairs=pairs, tensors=tensors, iteration=100 * k, time=1.7e9 + 60 * k, seconds=0.4,
                status=Status.FAILED, reason="CUDA out of memory. Tried to allocate 2.00 GiB",
            )  # fmt: skip
            continue
        sharp = 60 * np.exp(-(((progress - 0.6) / 0.35) ** 2)) + 4
        decay = np.array([1, 0.55, 0.4, -0.08, -0.15])
        eigenvalue = sharp * decay * (1 + 0.05 * rng.standard_normal(pairs))
        eigenvalue = np.sort(eigenvalue)[::-1]
        residual = np.abs(eigenvalue[[0, 0, 0, -1, -1]]) * 10 ** rng.uniform(-5, -3.2, pairs)
        converged = np.ones(pairs, np.int8)
        if k == 4:
            residual[3], converged[3] = 0.2 * abs(eigenvalue[-1]), 0
        curvature = base * (1 + sharp / 20) * rng.lognormal(0, 0.2, tensors)
        curvature[::9] *= -1
        slope = base * 10 ** rng.uniform(-2.2, -1.8, tensors)
        limit = np.where(curvature > 0, 3 * curvature**2 / slope, 0)
        estimate = 3 * base**2 / slope * rng.lognormal(np.log(9) * (1 - progress), 0.9, tensors)
        lipschitz = np.full(tensors, np.nan) if k == 0 else estimate
        known = dict(lipschitz=lipschitz, threshold=limit, curvature=curvature, slope=slope)
        answer = advisor.advise(Evidence.exact(100 * k, names, numel, **known))
        yield Measurement.blank(
            pairs=pairs,
            tensors=tensors,
            iteration=100 * k,
            time=1.7e9 + 60 * k,
            seconds=2.5,
            status=Status.CONVERGED if converged.all() else Status.UNCONVERGED,
            num_matvecs=120,
            loss=4.2 * np.exp(-2 * progress) + 1.2 + 0.05 * rng.standard_normal(),
            grad_norm=0.4 + 0.8 * np.exp(-3 * progress) + 0.05 * rng.standard_normal(),
            distance=0.7,
            learning_rate=3e-2 * (1 - 0.9 * progress),
            eigenvalue=eigenvalue,
            residual=residual,
            converged=converged,
            overlap=np.full(pairs, np.nan) if k == 0 else rng.uniform(0.3, 1, pairs),
            grad_projection=-np.abs(rng.standard_normal(pairs)) * 0.1,
            lipschitz_drift=np.full(pairs, np.nan)
            if k == 0
            else np.array([8, 6, 5, 90, 150]) * rng.lognormal(progress * 2, 0.4, pairs),
            regret=np.full(pairs, np.nan) if k == 0 else 10 ** rng.uniform(-2, 0.6, pairs),
            eigenvector_mass=rng.dirichlet(np.full(tensors, 0.1), pairs),
            tensor_curvature=curvature,
            tensor_lipschitz=lipschitz,
            tensor_lipschitz_upper=lipschitz,
            tensor_slope=slope,
            **dict.fromkeys(
                ("tensor_threshold", "tensor_threshold_low", "tensor_threshold_high"), limit
            ),
            tensor_grad_norm=slope * np.sqrt(numel),
            recommendation=answer.choice,
            assigned=np.roll(answer.choice, 1) if amos and k else np.zeros(tensors, np.int8),
        )


def with_blocks(count: int, **fields):
    """Measurements of 40 blocks, of which ``b7`` is the sharpest and once did not converge."""
    for i in range(count):
        largest = 1.0 + np.arange(40) / 100 + i
        largest[7], largest[9] = 30 + i, -0.5
        converged = np.ones(40, np.int8)
        converged[7] = i != 1
        yield Measurement.blank(
            pairs=TOP + BOTTOM,
            tensors=39,
            blocks=40,
            iteration=100 * i,
            block_largest=largest,
            block_largest_residual=np.full(40, 1e-3),
            block_smallest=-largest / 10,
            block_smallest_residual=np.full(40, 2e-3),
            block_converged=converged,
            **fields,
        )


BLOCKS = {"blocks": tuple(f"b{i}" for i in range(40))}


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Run]:
    """Write a run and open it; ``rows`` replaces the synthetic measurements."""
    opened: list[Run] = []

    def write(
        *, layers: int = 6, count: int = 20, names: Sequence[str] | None = None, rows=None,
        amos: bool = False, name: str = "run.h5", **header_changes,
    ) -> Run:  # fmt: skip
        names = gpt_names(layers) if names is None else list(names)
        numel = [gpt_numel(n) for n in names]
        path = tmp_path / name
        with RunWriter(path, header(names, numel, **header_changes)) as writer:
            for row in measurements(names, numel, count, amos=amos) if rows is None else rows:
                writer.append(row)
        opened.append(open_run(path))
        return opened[-1]

    yield write
    for run in opened:
        run.close()


@pytest.fixture(scope="session")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open an address in a page of its own.  Fails in the end on whatever a console said.

    The page is a context manager: close it before the server that it keeps asking.
    """
    contexts, said = [], []

    def visit(url, **options):
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert said == []
