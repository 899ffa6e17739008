"""An existing loop, stock attention and the criterion in the loop: one line is added.

Without ``loss=`` the training step's own loss is measured, by a replay of its forward.

    python examples/captured.py && lipprof report captured.h5 --html captured.html
"""

import torch
import torch.nn.functional as F

import lipprof
from lipprof.demo.gpt import CharGPT
from lipprof.demo.text import load_text


def main():
    torch.manual_seed(0)
    text = load_text()
    generator = torch.Generator().manual_seed(0)
    model = CharGPT(text.vocabulary, length=32, layers=2, width=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    prof = lipprof.attach(model, optimizer, "captured.h5", every=40, profile="quick")

    for iteration in range(161):
        optimizer.zero_grad()
        for _ in range(2):  # two microbatches per step
            x, y = text.batch("train", size=16, length=32, generator=generator)
            logits = model(x)
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten()) / 2
            loss.backward()
        optimizer.step()
        if iteration % 40 == 0:
            sharpness = prof.last.eigenvalue[0]
            print(f"iteration {iteration:3d}  loss {2 * loss.item():.3f}  top λ {sharpness:.1f}")
    prof.close()


if __name__ == "__main__":
    main()
