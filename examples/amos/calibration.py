"""Step-length calibration from learning rates that are too low, right and too high.

A character GPT learns TinyShakespeare from every start factor of its tuned learning rate, untouched
and calibrated, with paired seeds: the same weights, batches and schedule.  ``adamw`` is AdamW on
every tensor; ``muon`` is AMOS with the blocks' matrices on Muon and the rest on AdamW, with one
factor for each.  ``prodigy`` and ``dadapt`` are Adams that find their own learning rate.
Iterations are equal; calibration's own gradients come on top and are listed.

    python -m examples.amos.calibration --optimizer adamw muon --seeds 0 1 2 --out results.json
    python -m examples.amos.calibration --show results.json
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

import lipprof
from lipprof.demo.gpt import CharGPT
from lipprof.demo.text import Text, load_text

ITERATIONS = 300
WARMUP = 20
BATCH = {"size": 16, "length": 32}
VALIDATION = {"size": 128, "length": 32}
MODEL = {"length": 32, "layers": 2, "width": 64}
TUNED = {"adamw": 8e-3, "muon": 1.6e-2}  # best of a grid by factors of 2
STARTS = {
    "adamw": (1 / 30, 1 / 8, 1 / 4, 1.0, 4.0, 16.0),
    "muon": (0.1, 1.0, 10.0),
    "prodigy": (1.0,),
    "dadapt": (1.0,),
}
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "prodigy": ("Prodigy", {"safeguard_warmup": True}),
    "dadapt": ("DAdaptAdam", {}),
}
"""Optimizers of ``pytorch-optimizer`` to which lr = 1 means to find it, as they advise."""

Row = dict[str, Any]


def build(name: str, model: CharGPT, factor: float) -> torch.optim.Optimizer:
    """Build an optimizer at a multiple of its tuned learning rate."""
    if name in PEERS:
        import pytorch_optimizer  # noqa: PLC0415 - optional

        kind, own = PEERS[name]
        hyper = {"lr": 1.0, "betas": (0.9, 0.95), "weight_decay": 0.1, **own}
        return getattr(pytorch_optimizer, kind)(model.parameters(), **hyper)
    adamw = partial(
        torch.optim.AdamW, lr=TUNED["adamw"] * factor, betas=(0.9, 0.95), weight_decay=0.1
    )
    if name == "adamw":
        return adamw(model.parameters())
    return lipprof.AMOS(
        model.named_parameters(),
        first=adamw,
        second=partial(torch.optim.Muon, lr=TUNED["muon"] * factor, weight_decay=0.0),
        eligible=lambda name, tensor: name.startswith("blocks.") and tensor.ndim == 2,
        start="second",
        idle_state="restart",
    )


def train(text: Text, name: str, start: float, seed: int, *, calibrated: bool) -> Row:
    """Train once.

    Args:
        text: what to learn.
        name: a key of ``STARTS``.
        start: learning rate over the tuned one.
        seed: of weights and batches.
        calibrated: whether the learning rate is calibrated.

    Returns:
        The validation loss in nats per character, and what calibration found.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = CharGPT(text.vocabulary, **MODEL)
    optimizer = build(name, model, start)
    scheduler = LambdaLR(
        optimizer, lambda i: min((i + 1) / WARMUP, 1.0) * (1 - 0.9 * i / ITERATIONS)
    )
    probe = text.batch("train", generator=generator, **BATCH)
    row: Row = {"optimizer": name, "start": start, "seed": seed, "calibrated": calibrated}
    calibration = None
    if calibrated:
        calibration = lipprof.calibrate(model, optimizer, loss=lambda model: model.loss(probe))
    for _ in range(ITERATIONS):
        loss = model.loss(text.batch("train", generator=generator, **BATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if not math.isfinite(loss.item()):
            break
    if calibration is not None:
        row |= {
            "outcomes": [outcome.label for outcome in calibration.outcomes],
            "over_tuned": [start * side.times_given for side in calibration.sides],
            "decided_at": calibration.trace[-1].iteration,
            "gradients": calibration.num_gradients,
        }
    return row | {"validation": validation(model, text)}


@torch.no_grad()
def validation(model: CharGPT, text: Text) -> float:
    """Mean loss over the same 2560 windows for every run; nats per character."""
    generator = torch.Generator().manual_seed(12345)
    batches = [text.batch("validation", generator=generator, **VALIDATION) for _ in range(20)]
    return torch.stack([model.loss(batch) for batch in batches]).mean().item()


def table(rows: list[Row]) -> Iterator[str]:
    """Lay out the mean validation loss over seeds, as lines of Markdown.

    Yields:
        A line; the last columns compare with the tuned run of the same seed, and tell the learning
        rates that were found over the tuned ones.
    """
    yield "| optimizer | start | untouched | calibrated | calibrated − tuned (each seed) | found |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name in dict.fromkeys(row["optimizer"] for row in rows):
        own = [row for row in rows if row["optimizer"] == name]
        tuned = {r["seed"]: r["validation"] for r in own if r["start"] == 1 and not r["calibrated"]}
        for start in sorted({row["start"] for row in own}):
            here = [row for row in own if row["start"] == start]
            plain = [row["validation"] for row in here if not row["calibrated"]]
            done = [row for row in here if row["calibrated"] and row["seed"] in tuned]
            gaps = [row["validation"] - tuned[row["seed"]] for row in done]
            found = [" and ".join(f"{x:.2g}" for x in row["over_tuned"]) for row in done]
            each = ", ".join(f"{gap:+.3f}" for gap in gaps)
            yield (
                f"| {name} | {_factor(start)} | {_mean(plain)} | "
                f"{_mean([row['validation'] for row in done])} | {_mean(gaps, '+')} ({each}) | "
                f"{'; '.join(found)} |"
            )


def _factor(start: float) -> str:
    return f"{start:g}×" if start >= 1 else f"1/{1 / start:.0f}"


def _mean(values: list[float], sign: str = "") -> str:
    return f"{statistics.fmean(values):{sign}.3f}" if values else ""


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="Step-length calibration")
    parser.add_argument("--optimizer", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", type=Path, help="a text file; default: TinyShakespeare")
    parser.add_argument("--out", type=Path, default=Path("calibration.json"))
    parser.add_argument("--show", type=Path, help="print the table of such a file and stop")
    arguments = parser.parse_args()
    if arguments.show:
        print("\n".join(table(json.loads(arguments.show.read_text()))))
        return
    text, rows = load_text(arguments.data), []
    for name in arguments.optimizer:
        for seed in arguments.seeds:
            for start in STARTS[name]:
                for calibrated in (False,) if name in PEERS else (False, True):
                    rows.append(train(text, name, start, seed, calibrated=calibrated))
                    print(json.dumps(rows[-1]), flush=True)
                    arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
