"""Print what was measured beside what the paper claims: a page of markdown tables.

python -m examples.lipschitz.results results

A number is the median over a run of its geometric mean over seeds, with the smallest and the
largest seed behind it.  A claim holds where every seed is beyond a factor of ``CLEAR`` on its side.
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.lipschitz.controls import eigenarc_on_equal
from examples.lipschitz.scenarios import SCENARIOS
from examples.lipschitz.superiority import correlations, share_above_quadratic
from examples.lipschitz.trials import ESTIMATES, Series, Trial, read_trials

CLEAR = 3.0
_TOP, _BOTTOM = 0, 1

COMPARISONS = (  # (what, larger L⁺, smaller L⁺, factor in the paper)
    ("an autoencoder beside a classifier", "autoencoder-mnist", "cnn-mnist", "many orders"),
    ("no shortcuts beside shortcuts, CNN", "cnn-cifar10", "cnn-residual", "100"),
    ("no shortcuts beside shortcuts, ResNet18", "resnet18-plain", "resnet18-cifar10", "100"),
    ("noise beside natural images, CNN", "cnn-noise", "cnn-cifar10", "100"),
    ("noise beside natural images, ResNet18", "resnet18-noise", "resnet18-cifar10", "100"),
)

Trials = dict[str, list[Trial]]  # by scenario


def page(folder: Path) -> str:
    """Write the page of one folder of trials.

    Args:
        folder: ``--out`` of ``run``.

    Returns:
        Markdown.
    """
    by_optimizer: dict[str, Trials] = {}
    for trial in read_trials(folder):
        trials = by_optimizer.setdefault(trial.about["optimizer"], {})
        trials.setdefault(trial.about["scenario"], []).append(trial)
    parts = [_optimizer_part(name, trials) for name, trials in sorted(by_optimizer.items())]
    return "\n\n".join(parts) + "\n"


def _optimizer_part(optimizer: str, trials: Trials) -> str:
    tables = [
        _what_ran(trials),
        _ratios(trials, "L⁻/L⁺", unit_free=False),
        _ratios(trials, "ℓ⁻/ℓ⁺, free of units: ℓ = Lγ/λ²", unit_free=True),
        _trends(trials),
        _control(trials),
        _compared(trials),
        _superiority(trials),
        _levels(trials),
    ]
    return "\n\n".join([f"## Optimizer: {optimizer}", *tables])


def _what_ran(trials: Trials) -> str:
    rows = []
    for name, seeds in trials.items():
        about = seeds[0].about
        losses = [f"{trial.loss[0]:.3g} to {trial.loss[-1]:.3g}" for trial in seeds]
        rows.append([
            name,
            SCENARIOS[name].title,
            f"{about['parameters']:,}",
            f"{about['images']} of {about['origin']}",
            f"{seeds[0].iteration[-1]:.0f}",
            str(len(seeds)),
            "; ".join(losses),
        ])
    header = ["scenario", "what", "n", "images", "last iteration", "seeds", "loss"]
    return "### What ran\n\n" + table(header, rows)


def _ratios(trials: Trials, title: str, *, unit_free: bool) -> str:
    """L⁻/L⁺ of every scenario by every estimator, and whether it is large."""
    rows = []
    for name, seeds in trials.items():
        cells = []
        for estimator in ESTIMATES:
            ratios = [median(_ratio(_series(trial, estimator, unit_free))) for trial in seeds]
            cells.append(f"{spread(ratios)} {verdict(ratios)}")
        rows.append([name, *cells])
    return f"### {title}\n\n" + table(["scenario", *ESTIMATES.values()], rows)


def _trends(trials: Trials) -> str:
    rows = [
        [name, *(_range([trend(_ratio(t.estimates[e])) for t in seeds]) for e in ESTIMATES)]
        for name, seeds in trials.items()
    ]
    title = "### Does the gap widen? log₁₀ L⁻/L⁺, change per 10 measurements\n\n"
    return title + table(["scenario", *ESTIMATES.values()], rows)


def _levels(trials: Trials) -> str:
    rows = []
    for (name, seeds), estimator in itertools.product(trials.items(), ESTIMATES):
        cells = [
            spread([median(_series(trial, estimator, unit_free)[:, end]) for trial in seeds])
            for unit_free in (False, True)
            for end in (_TOP, _BOTTOM)
        ]
        rows.append([name, ESTIMATES[estimator], *cells])
    header = ["scenario", "estimator", "L⁺", "L⁻", "ℓ⁺ = L⁺γ/λ²", "ℓ⁻ = L⁻γ/λ²"]
    return "### Levels\n\n" + table(header, rows)


def _control(trials: Trials) -> str:
    """EigenARC on a surface where both ends have the L⁺ that was found exactly."""
    rows = []
    for name, seeds in trials.items():
        levels = [median(trial.estimates["along"][:, _TOP]) for trial in seeds]
        ratios = [
            _ratio(eigenarc_on_equal(trial.curvature, trial.slope, level))
            for trial, level in zip(seeds, levels, strict=True)
        ]
        last = [ratio[np.isfinite(ratio)][-1:] for ratio in ratios]
        rows.append([
            name,
            spread(levels),
            spread([median(ratio) for ratio in ratios]),
            spread([median(ratio) for ratio in last]),
            _range([trend(ratio) for ratio in ratios]),
        ])
    header = ["λ and γ of", "L of both", "L⁻/L⁺, median", "at the end", "decades per 10"]
    return "### EigenARC where L⁺ = L⁻\n\n" + table(header, rows)


def _compared(trials: Trials) -> str:
    rows = []
    for what, large, small, factor in COMPARISONS:
        if not {large, small} <= set(trials):
            continue
        pairs = list(zip(trials[large], trials[small], strict=False))
        for unit_free in (False, True):
            cells = []
            for estimator in ESTIMATES:
                quotients = [
                    median(_series(a, estimator, unit_free)[:, _TOP])
                    / median(_series(b, estimator, unit_free)[:, _TOP])
                    for a, b in pairs
                ]
                cells.append(f"{spread(quotients)} {verdict(quotients)}")
            rows.append([what, "ℓ⁺" if unit_free else "L⁺", factor, *cells])
    return "### L⁺ compared\n\n" + table(["", "of", "paper", *ESTIMATES.values()], rows)


def _superiority(trials: Trials) -> str:
    rows = []
    for (name, seeds), estimator in itertools.product(trials.items(), ESTIMATES):
        found = correlations(seeds, estimator)
        rows.append([
            name,
            ESTIMATES[estimator],
            f"{seeds[0].lr:g}",
            str(found.pearson.count),
            f"{found.pearson.r:+.2f} (p {found.pearson.p:.0e})",
            *(f"{c.r:+.2f}" for c in (found.spearman, found.given_scale, found.unit_free)),
            f"{share_above_quadratic(seeds):.0%}",
        ])
    numbers = ["Pearson", "Spearman", "given λ, γ", "unit-free", "above"]
    header = ["scenario", "L⁺ by", "lr", "N", *numbers]
    return "### Newton's superiority and L⁺\n\n" + table(header, rows)


def _series(trial: Trial, estimator: str, unit_free: bool) -> Series:
    return trial.unit_free(estimator) if unit_free else trial.estimates[estimator]


def _ratio(estimates: Series) -> Series:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = estimates[:, _BOTTOM] / estimates[:, _TOP]
    return np.where(np.isfinite(ratio) & (ratio > 0), ratio, np.nan)


def median(series: Series) -> float:
    """Median of what is not NaN; NaN where nothing is."""
    known = series[np.isfinite(series)]
    return float(np.median(known)) if len(known) else np.nan


def trend(ratio: Series) -> float:
    """Slope of log₁₀ of a ratio, per 10 measurements; NaN with fewer than three."""
    known = np.isfinite(ratio)
    if known.sum() < 3:
        return np.nan
    return float(10 * np.polyfit(np.flatnonzero(known), np.log10(ratio[known]), 1)[0])


def spread(numbers: Sequence[float]) -> str:
    """Geometric mean, with the smallest and the largest where there are several."""
    known = np.array([x for x in numbers if np.isfinite(x) and x > 0])
    if not len(known):
        return "-"
    mean = f"{np.exp(np.log(known).mean()):.2g}"
    return mean if len(known) == 1 else f"{mean} ({known.min():.2g} to {known.max():.2g})"


def verdict(ratios: Sequence[float]) -> str:
    """Whether a ratio that should be large is so for every seed."""
    known = [x for x in ratios if np.isfinite(x)]
    if not known:
        return "-"
    if min(known) > CLEAR:
        return "holds"
    return "reversed" if max(known) < 1 / CLEAR else "no"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _range(numbers: Sequence[float]) -> str:
    known = [x for x in numbers if np.isfinite(x)]
    if not known:
        return "-"
    low, high = min(known), max(known)
    return f"{low:+.2f}" if len(known) == 1 else f"{low:+.2f} to {high:+.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the page of results.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("results"))
    args = parser.parse_args()
    text = page(args.folder)
    (args.folder / "results.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
