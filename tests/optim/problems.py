"""A small classification problem and hand-made recommendations, for the optimizer tests."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipprof.advice import Choice, Evidence, NewtonSafe, Recommendation
from lipprof.optim import AMOS


class Problem:
    """The same model and the same minibatches, however many optimizers train it."""

    def __init__(self, *, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(64, 8, 5, generator=generator, dtype=dtype)
        teacher = torch.randn(5, 3, generator=generator, dtype=dtype)
        self.labels = (self.inputs @ teacher).argmax(-1)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self._model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
        self.scale = scale

    def model(self) -> nn.Module:
        return copy.deepcopy(self._model)

    def loss(self, model: nn.Module, iteration: int) -> Tensor:
        batch = iteration % len(self.inputs)
        logits = model(self.inputs[batch])
        return self.scale * nn.functional.cross_entropy(logits, self.labels[batch])

    def train(
        self,
        model: nn.Module,
        optimizers: torch.optim.Optimizer | list[torch.optim.Optimizer],
        iterations: range,
        before_step: Callable[[int], None] = lambda iteration: None,
    ) -> list[dict[str, Tensor]]:
        """Train, and give back the gradients of every iteration."""
        listed = optimizers if isinstance(optimizers, list) else [optimizers]
        gradients = []
        for iteration in iterations:
            model.zero_grad()
            self.loss(model, iteration).backward()
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
            before_step(iteration)
            for optimizer in listed:
                optimizer.step()
        return gradients


def with_first_weight_second(problem: Problem, first: Any, second: Any) -> tuple[Any, ...]:
    """An AMOS whose second arm has the first weight, and the same two optimizers alone.

    Returns:
        The model of AMOS, AMOS, another model, its two optimizers: the second arm's, the first's.
    """
    model, reference = problem.model(), problem.model()
    amos = AMOS(
        model.named_parameters(),
        first,
        second,
        eligible=lambda name, _: name == "0.weight",
        start="second",
    )
    named = dict(reference.named_parameters())
    return model, amos, reference, [second([named.pop("0.weight")]), first(named.values())]


def recommend(choices: Mapping[str, Choice], iteration: int = 0) -> Recommendation:
    """A recommendation made by hand; the numbers agree with the choices."""
    count = len(choices)
    choice = np.array([int(c) for c in choices.values()], np.int8)
    lipschitz = np.where(choice == Choice.FIRST, 2.0, 0.5)
    evidence = Evidence.exact(
        iteration,
        list(choices),
        np.ones(count),
        lipschitz=lipschitz,
        threshold=np.ones(count),
        curvature=np.ones(count),
        slope=np.full(count, 3.0),
    )
    ratio = NewtonSafe().ratio(evidence)
    return Recommendation(
        rule=NewtonSafe(),
        evidence=evidence,
        low=ratio.low,
        high=ratio.high,
        choice=choice,
        stable_for=np.zeros(count, np.int64),
    )


def everything(model: nn.Module, choice: Choice, iteration: int = 0) -> Recommendation:
    return recommend({name: choice for name, _ in model.named_parameters()}, iteration)


def parameters_equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
