"""Two optimizers compete, and the better goes on: AdamW, and a Muon that steps 16 times too short.

python -m examples.amos.trial && lipprof report trial.h5
"""

import logging
from functools import partial

import torch
from torch.optim import AdamW

import lipprof
from examples.amos.muon import Muon
from lipprof.demo.gpt import CharGPT
from lipprof.demo.text import load_text


def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # tells who won, and why
    torch.manual_seed(0)
    text = load_text()
    generator = torch.Generator().manual_seed(0)

    def batch():
        return text.batch("train", size=16, length=32, generator=generator)

    model = CharGPT(text.vocabulary, length=32, layers=2, width=64)
    optimizer = lipprof.AMOS(
        model.named_parameters(),
        first=partial(AdamW, lr=3e-3),
        second=partial(Muon, lr=0.03 / 16),
        eligible=lambda name, tensor: name.startswith("blocks.") and tensor.ndim == 2,
    )
    probe = batch()

    def probe_loss(model):
        return model.loss(probe)

    with lipprof.attach(
        model, optimizer, "trial.h5", loss=probe_loss, every=50, profile="quick"
    ) as prof:
        contest = lipprof.Contest(model, optimizer, loss=probe_loss, calibrate=True, profiler=prof)
        for iteration in range(201):
            now = batch()

            def closure(now=now):
                optimizer.zero_grad()
                loss = model.loss(now)
                loss.backward()
                return loss

            loss = optimizer.step(closure)
            if iteration % 20 == 0:
                print(f"iteration {iteration:3d}  loss {loss.item():.3f}")
        for who, verdicts in contest.verdicts.items():
            for side, verdict in zip(("AdamW", "Muon"), verdicts, strict=True):
                print(f"{who}: {side}: {verdict}")


if __name__ == "__main__":
    main()
