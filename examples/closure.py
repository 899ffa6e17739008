"""A plain loop with a fixed probe batch: the series is free of minibatch noise.

python examples/closure.py && lipprof report closure.h5
"""

import torch
import torch.nn.functional as F
from torch import nn

import lipprof
from lipprof.demo.text import load_text

WINDOW = 12


def model(vocabulary):
    """Predict a character from the WINDOW before it."""
    return nn.Sequential(
        nn.Embedding(vocabulary, 16),
        nn.Flatten(),
        nn.Linear(16 * WINDOW, 128),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Linear(128, vocabulary),
    )


def main():
    torch.manual_seed(0)
    text = load_text()
    generator = torch.Generator().manual_seed(0)

    def batch(size):
        inputs, targets = text.batch("train", size=size, length=WINDOW, generator=generator)
        return inputs, targets[:, -1]

    net = model(text.vocabulary)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    inputs, targets = batch(512)

    def probe_loss(net):
        return F.cross_entropy(net(inputs), targets)

    with lipprof.attach(net, optimizer, "closure.h5", loss=probe_loss, every=50, top=3, bottom=3):
        for iteration in range(400):
            x, y = batch(64)
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            if iteration % 50 == 0:
                print(f"iteration {iteration:3d}  loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
