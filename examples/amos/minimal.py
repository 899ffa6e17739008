"""AMOS follows the live recommendation: SGD for the tensors where Newton would not be safe.

python -m examples.amos.minimal && lipprof report minimal.h5
"""

import logging
from functools import partial

import torch
from torch.optim import AdamW

import lipprof
from lipprof.demo.gpt import CharGPT
from lipprof.demo.text import load_text


def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # tells every switch
    torch.manual_seed(0)
    text = load_text()
    generator = torch.Generator().manual_seed(0)

    def batch(size=16):
        return text.batch("train", size=size, length=32, generator=generator)

    model = CharGPT(text.vocabulary, length=32, layers=2, width=64)
    optimizer = lipprof.AMOS(
        model.named_parameters(),
        first=partial(AdamW, lr=3e-3),
        second=partial(lipprof.Sophia, lr=1e-3, rho=0.05, estimator="hutchinson"),
    )
    probe = batch(32)

    # The profiler lends Sophia its diagonal of the Hessian, and AMOS the recommendation.
    with lipprof.attach(
        model, optimizer, "minimal.h5", loss=lambda m: m.loss(probe), every=20, profile="quick"
    ):
        for iteration in range(161):
            loss = model.loss(batch())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if iteration % 20 == 0:
                print(f"iteration {iteration:3d}  loss {loss.item():.3f}")
    print(f"{len(optimizer.switches)} switches")


if __name__ == "__main__":
    main()
