"""What the paper claims of AMOS beside what was measured: markdown from the files of ``paper``."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from examples.amos import run_log

TABLE_2 = {0.7: 16.19, 0.8: 17.90, 0.9: 14.65, 0.95: 0.65, 0.99: 0.91, 0.995: 0.65, 0.999: 0.02}
"""Percent of parameters offloaded to SGD, on average, by α_L; eq. 8 with maxima (App. K)."""

Runs = dict[str, list[dict[str, Any]]]  # by optimizer, seed by seed


def page(path: Path) -> str:
    """Write the page of the results in a file.

    Args:
        path: ``--out`` of ``paper``.

    Returns:
        Markdown.
    """
    runs: Runs = {}
    for run in run_log.read(path).values():
        runs.setdefault(run["optimizer"], []).append(run)
    about = next(iter(runs.values()))[0]
    head = (
        f"{about['parameters']:,} parameters, {about['iterations']} iterations, {about['text']}. "
        "Mean over seeds, smallest and largest seed behind it."
    )
    return "\n\n".join([head, _losses(runs), _sweep(runs), _claims(runs)]) + "\n"


def _losses(runs: Runs) -> str:
    rows = [
        [
            name,
            str(len(seeds)),
            _spread(_final(seeds)),
            _spread([statistics.fmean(run["train_loss"][-5:]) for run in seeds]),
            *_offloaded(seeds),
            f"{statistics.fmean(run['seconds'] for run in seeds):.0f}",
        ]
        for name, seeds in runs.items()
        if not name.startswith("amos-eq8")
    ]
    header = [
        "optimizer",
        "seeds",
        "validation loss",
        "training loss, last 50",
        "offloaded, mean",
        "largest",
        "seconds",
    ]
    return "Figure 1:\n\n" + _table(header, rows)


def _sweep(runs: Runs) -> str:
    rows = [
        [
            f"{alpha:g}",
            "h / labels" if suffix else "h",
            f"{paper:.2f} %",
            *_offloaded(runs[name]),
            _spread(_final(runs[name])),
        ]
        for suffix in ("", "-raw")
        for alpha, paper in TABLE_2.items()
        if (name := f"amos-eq8-{alpha}{suffix}") in runs
    ]
    header = ["α_L", "L of", "in the paper", "offloaded, mean", "largest", "validation loss"]
    return "Table 2 and figure 5, the threshold of eq. 8:\n\n" + _table(header, rows)


def _claims(runs: Runs) -> str:
    rows = []
    for claim, needs, test in _CLAIMS:
        if all(name in runs for name in needs):
            rows.append([claim, *test(*(_final(runs[name]) for name in needs))])
    for suffix, what in (("", "h"), ("-raw", "h / labels")):
        names = [f"amos-eq8-{alpha}{suffix}" for alpha in TABLE_2]
        sweep = [_final(runs[name]) for name in names if name in runs]
        if len(sweep) > 1:
            means = [statistics.fmean(losses) for losses in sweep]
            width = max(means) - min(means)
            rows.append([
                f"trajectories barely depend on α_L (figure 5), L of {what}",
                f"means within {width:.3f}",
                _verdict(width <= _seed_spread(sweep)),
            ])
    return "Claims:\n\n" + _table(["claim", "measured", "holds"], rows)


Verdict = tuple[str, str]


def _below(lower: Sequence[float], *others: Sequence[float]) -> Verdict:
    """Whether one optimizer ends below all others, by more than its seeds differ."""
    gap = min(statistics.fmean(other) for other in others) - statistics.fmean(lower)
    clear = gap > _seed_spread([lower, *others])
    return f"{gap:+.3f} to the next", "yes" if clear else "no" if gap < 0 else "within the seeds"


def _equal(one: Sequence[float], other: Sequence[float]) -> Verdict:
    gap = statistics.fmean(one) - statistics.fmean(other)
    return f"{gap:+.3f}", _verdict(abs(gap) <= _seed_spread([one, other]))


_CLAIMS: tuple[tuple[str, tuple[str, ...], Callable[..., Verdict]], ...] = (
    ("AMOS ends lowest (figure 1)", ("amos", "adamw", "sgd", "sophia"), _below),
    ("the same with L of h / labels", ("amos-raw", "adamw", "sgd", "sophia"), _below),
    ("AdamW ends below SGD and Sophia alone (figure 1)", ("adamw", "sgd", "sophia"), _below),
    ("AMOS ends below AdamW at its best learning rate", ("amos", "adamw-tuned"), _below),
    ("AMOS at α_L = 0.7 is as good as AdamW (figure 6)", ("amos-eq8-0.7", "adamw"), _equal),
    ("the same with L of h / labels", ("amos-eq8-0.7-raw", "adamw"), _equal),
)


def _final(seeds: Sequence[dict[str, Any]]) -> list[float]:
    return [run["validation_loss"] for run in seeds]


def _seed_spread(samples: Sequence[Sequence[float]]) -> float:
    """The largest range over seeds of any of the samples."""
    return max(max(sample) - min(sample) for sample in samples)


def _verdict(holds: bool) -> str:
    return "yes" if holds else "no"


def _offloaded(seeds: Sequence[dict[str, Any]]) -> list[str]:
    shares = [run["offloaded"] for run in seeds if run["offloaded"]]
    if not shares:
        return ["", ""]
    means = [100 * statistics.fmean(share) for share in shares]
    return [_spread(means, digits=1) + " %", f"{100 * max(map(max, shares)):.0f} %"]


def _spread(values: Sequence[float], *, digits: int = 3) -> str:
    low, mean, high = min(values), statistics.fmean(values), max(values)
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
