"""The paper's own AMOS: figures 1, 5 and 6 and table 2, a character GPT on TinyShakespeare.

python -m examples.amos.paper --preset cpu --seeds 3 --out results

Trains with every optimizer of the figures, seed by seed; one JSON file each, and those that are
there are not trained again.  Then prints what the paper claims beside what was measured.

AMOS is Alg. 2 as the paper runs it (App. K): SGD and Sophia-G with the paper's constants, every
tensor on Sophia until its first L, no bias correction, no hysteresis, no floor on distances.
``amos-safe`` is the same pair of learning rates for AdamW and Sophia with lipprof's defaults.

L and the thresholds are those of the Hessian's diagonal h, unless the name ends in ``-raw``:
Sophia's published code keeps h / labels and multiplies ρ by the number of labels instead.  Its
steps are the same, but L of that diagonal is smaller by this factor, and which one the paper's
2e-10 means is not stated.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from examples.amos import run_log
from examples.amos.paper_page import page
from lipprof import AMOS, Sophia
from lipprof.advice import Choice
from lipprof.demo.gpt import CharGPT
from lipprof.demo.text import Text, load_text

ALPHAS = (0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999)
REFRESH = 10  # iterations between estimates of the diagonal
WARMUP = 0.05  # of all iterations
NANOGPT = {"betas": (0.9, 0.95), "weight_decay": 0.1}
PAPER_LR = 6e-4
RHO = 0.01
RAW = "-raw"
SGD_LR = {"fig1": 1.25e-5, "eq8": 3.125e-6}  # grid-searched in the paper, for either experiment
THRESHOLD = 2e-10


@dataclass(frozen=True, slots=True)
class Preset:
    """A size.  ``paper``: width, length and batch are not stated there; GPT-2's are taken."""

    layers: int
    heads: int
    width: int
    length: int  # characters
    batch: int
    iterations: int
    tuned_lr: float  # AdamW's best at this size


PRESETS = {
    "paper": Preset(12, 12, 768, 256, 12, 2010, 1e-3),
    "cpu": Preset(3, 4, 64, 32, 16, 500, 8e-3),
    "test": Preset(1, 2, 16, 16, 4, 40, 8e-3),
}

_paper_sophia = partial(Sophia, lr=PAPER_LR, **NANOGPT)


def _alg2(sgd_lr: float, rho: float, **estimate: Any) -> Callable[[Any], AMOS]:
    """AMOS without any of lipprof's safeguards."""
    return partial(
        AMOS,
        first=partial(SGD, lr=sgd_lr),
        second=partial(_paper_sophia, rho=rho),
        start="second",
        bias_correction=False,
        distance_floor=0.0,
        hysteresis=1.0,
        dwell=1,
        **estimate,
    )


def optimizers(preset: Preset) -> dict[str, Callable[[Any], Optimizer]]:
    """All optimizers of the experiments.

    Args:
        preset: whose tuned learning rate AdamW has.

    Returns:
        Factories by name.
    """
    amos = {}
    for suffix, rho in (("", RHO), (RAW, RHO * preset.batch * preset.length)):
        mean = {"rule": "threshold", "threshold": THRESHOLD, "aggregate": "mean", "alpha": 0.99}
        amos[f"amos{suffix}"] = _alg2(SGD_LR["fig1"], rho, **mean)
        for alpha in ALPHAS:
            eq8 = {"rule": "newton-safe", "aggregate": "max", "alpha": alpha, "epsilon": 1e-15}
            amos[f"amos-eq8-{alpha}{suffix}"] = _alg2(SGD_LR["eq8"], rho, **eq8)
    return {
        "adamw": partial(AdamW, lr=PAPER_LR, **NANOGPT),
        "adamw-tuned": partial(AdamW, lr=preset.tuned_lr, **NANOGPT),
        "sgd": partial(SGD, lr=SGD_LR["fig1"]),
        "sophia": partial(_paper_sophia, rho=RHO),
        **amos,
        "amos-safe": partial(
            AMOS,
            first=partial(AdamW, lr=PAPER_LR, **NANOGPT),
            second=partial(_paper_sophia, rho=RHO),
        ),
    }


def train(preset: Preset, name: str, text: Text, seed: int, device: str) -> dict[str, Any]:
    """Train once; equal seeds give equal weights and batches.

    Args:
        preset: the size.
        name: of the optimizer.
        text: what to learn.
        seed: of weights and batches.
        device: where.

    Returns:
        What was trained; ``train_loss``, means of ``REFRESH`` iterations, and ``validation_loss``
        at the end in nats per character; ``offloaded``: the share of parameters on the first-order
        side at each refresh.
    """
    torch.manual_seed(seed)
    batches, labels, held_out = (torch.Generator().manual_seed(1_000 * k + seed) for k in (1, 2, 3))

    def batch(split: str, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = text.batch(split, size=preset.batch, length=preset.length, generator=generator)
        return drawn[0].to(device), drawn[1].to(device)

    model = CharGPT(
        text.vocabulary,
        length=preset.length,
        layers=preset.layers,
        width=preset.width,
        heads=preset.heads,
    ).to(device)
    optimizer = optimizers(preset)[name](model.named_parameters())
    scheduler = LambdaLR(optimizer, partial(_warmup_cosine, total=preset.iterations))
    started = time.perf_counter()
    losses, offloaded = [], []
    for iteration in range(preset.iterations):
        inputs, targets = batch("train", batches)
        if isinstance(optimizer, AMOS | Sophia) and iteration % REFRESH == 0:
            _observe(optimizer, model, inputs, labels, raw=name.endswith(RAW))
        loss = model.loss((inputs, targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
        if isinstance(optimizer, AMOS) and iteration % REFRESH == 0:
            offloaded.append(_first_order_share(optimizer, model))
    seconds = time.perf_counter() - started
    with torch.no_grad():
        final = torch.stack([model.loss(batch("validation", held_out)) for _ in range(32)]).mean()
    return {
        "optimizer": name,
        "seed": seed,
        "text": text.origin,
        "parameters": sum(p.numel() for p in model.parameters()),
        "iterations": preset.iterations,
        "seconds": round(seconds, 1),
        "validation_loss": final.item(),
        "train_loss": [round(part.mean().item(), 4) for part in torch.stack(losses).split(REFRESH)],
        "offloaded": [round(x, 4) for x in offloaded],
    }


def _warmup_cosine(iteration: int, *, total: int) -> float:
    """NanoGPT's schedule: linear warm-up, then a cosine down to a tenth."""
    warm = max(1, round(WARMUP * total))
    if iteration < warm:
        return (iteration + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (iteration - warm) / (total - warm)))


def _observe(
    optimizer: AMOS | Sophia,
    model: CharGPT,
    inputs: torch.Tensor,
    labels: torch.Generator,
    *,
    raw: bool,
) -> None:
    """Feed the Gauss–Newton–Bartlett estimate: the gradient over labels that the model draws."""
    logits = model(inputs).flatten(0, 1)
    chances = logits.detach().softmax(-1).cpu()
    drawn = torch.multinomial(chances, 1, generator=labels).squeeze(1).to(logits.device)
    optimizer.zero_grad()
    F.cross_entropy(logits, drawn).backward()
    optimizer.observe_sampled_gradient(1 if raw else drawn.numel())


def _first_order_share(optimizer: AMOS, model: CharGPT) -> float:
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    first = sum(
        sizes[name] for name, choice in optimizer.assigned.items() if choice is Choice.FIRST
    )
    return first / sum(sizes.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Figures 1, 5, 6 and table 2 of the paper.")
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", help="optimizers; default: all of them")
    parser.add_argument("--text", type=Path, help="a text file; default: see lipprof.demo.text")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("results.jsonl"))
    args = parser.parse_args()
    preset, text = PRESETS[args.preset], load_text(args.text)
    for seed in range(args.seeds):
        for name in args.only or optimizers(preset):
            known = f"{name}-seed{seed}"
            if known not in run_log.read(args.out):
                result = train(preset, name, text, seed, args.device)
                run_log.append(args.out, known, result)
                print(f"{known}  {result['validation_loss']:.3f}", flush=True)
    print(page(args.out))


if __name__ == "__main__":
    main()
