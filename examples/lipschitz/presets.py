"""How large, how long, how exact: the paper's sizes, and some for a CPU or a test.

``paper`` has App. J's networks, 50 steps of ARC and all images; its batches are not known, 1,024
images are taken.  ``cpu`` takes minutes a seed on one core: 40 steps on one batch of 128 images or
32, an eighth of ResNet18's width and half of the autoencoder's.  ``test`` takes seconds.
"""

from dataclasses import dataclass, replace
from functools import partial

from torch import nn
from torch.optim import SGD, Adam, Optimizer

from lipprof import ARC

SGD_LR = 0.05
RIVAL_LR = 1e-3
"""Of the gradient step that Newton's is compared with along a run of ARC, as its group's ``lr``,
which has no other influence.  ``SGD_LR`` would be far beyond its edge of stability 2/λ there."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of a network and of its batch."""

    images: int
    width: int = 0  # of the first stage, where the network has a choice


@dataclass(frozen=True, slots=True)
class Preset:
    """Everything about an experiment but what is compared."""

    sizes: dict[str, Size]  # by network
    steps: int  # of ARC
    every: int  # steps between measurements
    tol: float  # of eigenpairs
    max_matvecs: int  # of eigenpairs
    arc_matvecs: int  # of ARC's sub-problem, the dimension of its Krylov space
    minibatches: bool = False  # another batch for each step; False: the one that is measured

    def paced(self, optimizer: str, steps: int | None = None) -> "Preset":
        """Have ten first-order steps where ARC takes one: about as many gradients.

        Args:
            optimizer: key of ``OPTIMIZERS``.
            steps: how many in all; None: as many as the preset has.

        Returns:
            The preset for this optimizer.
        """
        pace = 1 if optimizer == "arc" else 10
        steps = pace * self.steps if steps is None else steps
        return replace(self, steps=steps, every=pace * self.every)


PRESETS = {
    "paper": Preset(
        sizes={
            "classifier": Size(1_024),
            "resnet18": Size(1_024, width=64),
            "autoencoder": Size(1_024, width=16),
        },
        steps=50,
        every=1,
        tol=1e-4,
        max_matvecs=1_000,
        arc_matvecs=50,
        minibatches=True,
    ),
    "cpu": Preset(
        sizes={
            "classifier": Size(128),
            "resnet18": Size(32, width=8),
            "autoencoder": Size(32, width=8),
        },
        steps=40,
        every=2,
        tol=1e-2,
        max_matvecs=300,
        arc_matvecs=15,
    ),
    "test": Preset(
        sizes={
            "classifier": Size(16),
            "resnet18": Size(2, width=4),
            "autoencoder": Size(4, width=2),
        },
        steps=4,
        every=1,
        tol=1e-2,
        max_matvecs=300,
        arc_matvecs=5,
    ),
}


OPTIMIZERS = {
    "arc": lambda preset: partial(ARC, max_matvecs=preset.arc_matvecs),
    "sgd": lambda _: partial(SGD, lr=SGD_LR, momentum=0.9),
    "adam": lambda _: partial(Adam, lr=1e-3),
}


def build_optimizer(
    name: str, model: nn.Module, preset: Preset, *, rival_lr: float = RIVAL_LR
) -> Optimizer:
    """Build ``arc``, the paper's quasi-Newton method, ``sgd`` (momentum 0.9) or ``adam``.

    Args:
        name: the optimizer.
        model: whose parameters it steps.
        preset: decides what ARC may spend.
        rival_lr: of the gradient step that ARC's run compares Newton's with.

    Returns:
        The optimizer.
    """
    optimizer = OPTIMIZERS[name](preset)(model.named_parameters())
    if name == "arc":
        optimizer.param_groups[0]["lr"] = rival_lr
    return optimizer
