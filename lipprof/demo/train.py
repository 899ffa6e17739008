"""The demonstration's training: a plain loop, AMOS, and one attached line.

The arms' learning rates are those that trained best at this size on TinyShakespeare.  Validation
loss of the whole demonstration on Python's own sources, seeds 0 to 2: with Muon as second arm
2.235, 2.335, 2.279; with Sophia 2.345, 2.364, 2.299; AdamW alone in the same loop 2.333, 2.343,
2.312.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import AdamW

from lipprof.demo.gpt import CharGPT
from lipprof.demo.text import Text
from lipprof.errors import ConfigError
from lipprof.optim import AMOS, Sophia
from lipprof.profiler import attach

BATCH = {"size": 16, "length": 64}
Progress = Callable[[int, float, AMOS], None]


def default_second() -> str:
    """Muon, which trains best here (see above), where this torch has it."""
    return "muon" if hasattr(torch.optim, "Muon") else "sophia"


def build_amos(model: CharGPT, second: str) -> AMOS:
    """Compose AdamW for every tensor with a second arm for the blocks' matrices.

    Args:
        model: the model.
        second: ``muon`` or ``sophia``.

    Returns:
        The optimizer, every tensor on AdamW.

    Raises:
        ConfigError: another name, or Muon where torch has none.
    """
    arms = {
        "muon": lambda params: torch.optim.Muon(params, lr=1.6e-2, weight_decay=0.0),
        "sophia": partial(Sophia, lr=1.5e-3, rho=0.05, estimator="hutchinson"),
    }
    if second not in arms:
        raise ConfigError(f"Unknown second arm {second!r}. Known: {', '.join(arms)}.")
    if second == "muon" and not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"torch {torch.__version__} has no Muon: use --second sophia, or torch 2.9 or newer."
        )
    return AMOS(
        model.named_parameters(),
        first=partial(AdamW, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.1),
        second=arms[second],
        eligible=lambda name, tensor: name.startswith("blocks.") and tensor.ndim == 2,
    )


def train(
    text: Text,
    out: Path,
    *,
    iterations: int,
    every: int,
    second: str,
    seed: int = 0,
    on_step: Progress = lambda *_: None,
) -> float:
    """Train the GPT under the profiler.

    Args:
        text: what to learn.
        out: the run file.
        iterations: optimizer steps.
        every: iterations between measurements.
        second: AMOS's second arm.
        seed: of the weights and batches.
        on_step: is told the iteration, its loss and the optimizer.

    Returns:
        The validation loss at the end, nats per character.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = CharGPT(text.vocabulary, length=BATCH["length"]).to(device)
    optimizer = build_amos(model, second)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / 20, 1.0) * (1.0 - 0.9 * i / iterations)
    )

    def batch(split: str) -> tuple[Tensor, Tensor]:
        inputs, targets = text.batch(split, generator=generator, **BATCH)
        return inputs.to(device), targets.to(device)

    probe = batch("train")
    with attach(
        model, optimizer, out, loss=lambda model: model.loss(probe), every=every, top=3, bottom=2
    ):
        for iteration in range(iterations):
            loss = model.loss(batch("train"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            on_step(iteration, loss.item(), optimizer)
    with torch.no_grad():
        return torch.stack([model.loss(batch("validation")) for _ in range(20)]).mean().item()
