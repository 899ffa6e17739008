"""FOSI: Newton's step in the sharpest directions of the loss, SGD in all others.

python examples/fosi.py && lipprof report fosi.h5
"""

from functools import partial

import torch
from torch import nn
from torch.optim import SGD

import lipprof


def main():
    torch.manual_seed(0)
    scales = torch.logspace(1, -1, 20)  # inputs of very different sizes: an ill-conditioned loss
    inputs = torch.randn(512, 20) * scales
    targets = torch.sin(inputs / scales).sum(1, keepdim=True)

    def loss_of(model):
        return nn.functional.mse_loss(model(inputs), targets)

    start = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 1)).state_dict()
    sgd = partial(SGD, lr=0.05, momentum=0.9)  # the best of six for either
    finals = {}
    for name, build in {"sgd": sgd, "fosi": partial(lipprof.FOSI, base=sgd)}.items():
        model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 1))
        model.load_state_dict(start)
        optimizer = build(model.named_parameters())

        # The profiler lends FOSI the eigenpairs that converged; SGD is only watched.
        settings = {"every": 10, "top": 5, "bottom": 0, "tol": 0.01}
        with lipprof.attach(model, optimizer, f"{name}.h5", loss=loss_of, **settings):
            for _ in range(150):
                loss = loss_of(model)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        finals[name] = loss_of(model).item()
    print("  ".join(f"{name}: loss {loss:.4f}" for name, loss in finals.items()))


if __name__ == "__main__":
    main()
