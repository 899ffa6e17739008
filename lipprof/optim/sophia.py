# pyright: reportPrivateImportUsage=false
"""Sophia: clipped momentum over a diagonal of the Hessian (Liu et al. 2023, algorithm 3).

    m ← β₁ m + (1 − β₁) g                              every step
    h ← β₂ h + (1 − β₂) ĥ                              whenever a diagonal ĥ is observed
    θ ← θ − η wd θ − η clip(m / max(ρ h, ε), 1)

``Sophia`` never owns a loss: the diagonal is handed in, so that an estimate somebody else already
paid for (a profiler's Hutchinson diagonal) serves as well as its own.  As in the paper, m and h
start at zero and the step uses them uncorrected; until a diagonal was observed h = 0 and the step
is that of sign momentum, ±η.  ``diagonal`` gives h in true units, divided by 1 − β₂ᵏ.

Cost: two tensors of the size of the parameters.  A step is eight ``_foreach`` calls per batch of
tensors, 19 passes over one of them.  On accelerators all tensors of a device and dtype are one
batch, and its two temporaries are of their size.  On a CPU a batch is what stays in cache from one
call to the next (``CPU_BATCH``): six passes reach memory, p and m read and written, g and h read.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lipprof import curvature
from lipprof.errors import ConfigError, ShapeError

# Entries of a batch on a CPU, or one tensor.  Measured on 200 tensors of 125,000 entries, with 8 MB
# of cache: one at a time 0.61 of AdamW's foreach step, two 0.65, eight 0.70, all at once 1.05.
CPU_BATCH = 1 << 18


def sophia_direction(
    momentum: Sequence[Tensor], hessian: Sequence[Tensor], *, rho: float, eps: float
) -> list[Tensor]:
    """clip(m / max(ρ h, ε), 1) of every tensor; entries with h ≤ 0 become the sign of m.

    Args:
        momentum: moving averages of gradients, loss/param.
        hessian: moving averages of the diagonal, same shapes, loss/param².
        rho: ρ; the step is Newton's, unclipped, where |m| < ρh.
        eps: lower bound of ρh, loss/param².

    Returns:
        New tensors with entries in [−1, 1]; NaN in, NaN out.
    """
    direction = torch._foreach_mul(list(hessian), rho)
    torch._foreach_clamp_min_(direction, eps)
    direction = torch._foreach_div(list(momentum), direction)
    torch._foreach_clamp_min_(direction, -1.0)
    torch._foreach_clamp_max_(direction, 1.0)
    return list(direction)


def sophia_update(
    params: list[Tensor],
    grads: list[Tensor],
    momentum: list[Tensor],
    hessian: list[Tensor],
    *,
    lr: float | Tensor,
    beta1: float,
    rho: float,
    weight_decay: float,
    eps: float,
) -> None:
    """Advance ``params`` and ``momentum`` in place by one step; ``grads`` are only read."""
    torch._foreach_lerp_(momentum, grads, 1 - beta1)
    if weight_decay:
        torch._foreach_mul_(params, 1 - lr * weight_decay)
    direction = sophia_direction(momentum, hessian, rho=rho, eps=eps)
    if isinstance(lr, Tensor):  # as ``alpha`` it would be read by the host
        torch._foreach_mul_(direction, -lr)
        torch._foreach_add_(params, direction)
    else:
        torch._foreach_add_(params, direction, alpha=-lr)


def _batches(params: Sequence[Tensor], foreach: bool | None) -> Iterator[list[Tensor]]:
    """Tensors to update at once: of one device and dtype, and of a bounded size on a CPU."""
    if foreach is False:
        yield from ([p] for p in params)
        return
    alike: defaultdict[Any, list[Tensor]] = defaultdict(list)
    for p in params:
        alike[p.device, p.dtype].append(p)
    for (device, _), tensors in alike.items():
        batch, entries = [], 0
        for p in tensors:
            if batch and device.type == "cpu" and entries + p.numel() > CPU_BATCH:
                yield batch
                batch, entries = [], 0
            batch.append(p)
            entries += p.numel()
        yield batch


class Sophia(Optimizer):
    """Sophia-G and Sophia-H; see the module for the update.

    Sophia-G: the gradient of the mean loss over labels sampled from the model, every
    ``update_every`` steps.  ``batch_size`` is the number of labels that the mean was taken over:
    for a language model sequences × tokens, not sequences.  A factor forgotten there scales h.
    The estimate holds for a mean negative log-likelihood and no other loss::

        if optimizer.curvature_due:
            logits = model(inputs)
            labels = torch.distributions.Categorical(logits=logits).sample()
            F.cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()
            optimizer.observe_sampled_gradient(batch_size=labels.numel())
            optimizer.zero_grad()

    Sophia-H (``estimator="hutchinson"``): ``optimizer.observe_hutchinson(loss)`` before
    ``loss.backward()``; one more backward through the graph of the loss.

    Args:
        params: parameters, named parameters or groups.
        lr: η; the largest change of an entry per step, param; a tensor keeps a compiled step from
            being compiled anew when it changes.
        betas: β₁ of the momentum, β₂ of the diagonal.
        rho: ρ, 0.01 for Hutchinson and about 0.05 for Gauss–Newton–Bartlett in the paper.
        weight_decay: decoupled, multiplied by ``lr``.
        eps: ε, loss/param².
        estimator: which estimate the loop feeds; the other ``observe_`` method refuses, as the two
            average different matrices.
        update_every: steps between estimates, for ``curvature_due``.
        foreach: False updates one tensor at a time, with smaller temporaries.

    Raises:
        ConfigError: a value out of range, or a parameter that is not real.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 6e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        rho: float = 0.01,
        weight_decay: float = 0.1,
        eps: float = 1e-12,
        *,
        estimator: Literal["gnb", "hutchinson"] = "gnb",
        update_every: int = 10,
        foreach: bool | None = None,
    ) -> None:
        if not lr >= 0 or not rho > 0 or not weight_decay >= 0 or not eps > 0:
            raise ConfigError(
                f"Got {lr=}, {rho=}, {weight_decay=}, {eps=}: expected lr >= 0, rho > 0, "
                "weight_decay >= 0 and eps > 0."
            )
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"Got {betas=}: expected both in [0, 1).")
        if estimator not in {"gnb", "hutchinson"}:
            raise ConfigError(f"Unknown estimator {estimator!r}. Known: gnb, hutchinson.")
        if not update_every >= 1:
            raise ConfigError(f"Got {update_every=}: expected at least 1.")
        self.estimator = estimator
        self.update_every = update_every
        hyper = {"lr": lr, "betas": betas, "rho": rho, "weight_decay": weight_decay, "eps": eps}
        super().__init__(params, {**hyper, "foreach": foreach, "num_steps": 0})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take in one more group.

        Raises:
            ConfigError: a parameter that is not real.
        """
        super().add_param_group(param_group)
        kinds = {str(p.dtype) for p in param_group["params"] if not p.is_floating_point()}
        if kinds:
            self.param_groups.pop()
            raise ConfigError(
                f"Sophia clips real numbers; got parameters of {', '.join(sorted(kinds))}. Leave "
                "them to another optimizer, or optimize torch.view_as_real of complex ones."
            )

    def __getstate__(self) -> dict[str, Any]:
        own = {"estimator": self.estimator, "update_every": self.update_every}
        return super().__getstate__() | own

    @property
    def curvature_due(self) -> bool:
        """Whether the step to come is one of every ``update_every`` that want a new diagonal."""
        return max(group["num_steps"] for group in self.param_groups) % self.update_every == 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step.

        Args:
            closure: re-evaluates the loss and its gradient.

        Returns:
            The loss of the closure, if there is one.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            group["num_steps"] += 1
            params = [p for p in group["params"] if p.grad is not None]
            for batch in _batches(params, group["foreach"]):
                self._step_batch(batch, group)
        return loss

    def _step_batch(self, params: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._prepared_state(p) for p in params]
        sophia_update(
            params,
            [p.grad for p in params],  # pyright: ignore[reportArgumentType]
            [state["exp_avg"] for state in states],
            [state["hessian"] for state in states],
            lr=group["lr"],
            beta1=group["betas"][0],
            rho=group["rho"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )

    def _prepared_state(self, p: Tensor) -> dict[str, Any]:
        if p.grad is not None and p.grad.layout is not torch.strided:
            raise ConfigError(
                f"Sophia averages dense gradients; a parameter of shape {tuple(p.shape)} has a "
                f"{p.grad.layout} one. Build the embedding with sparse=False."
            )
        state = self.state[p]
        for key in ("exp_avg", "hessian"):
            if key not in state:
                state[key] = torch.zeros_like(p)
        return state

    @torch.no_grad()
    def observe_curvature(self, diagonal: Mapping[Tensor, Tensor]) -> None:
        """Take in an estimate of the Hessian's diagonal, whoever made it.

        Args:
            diagonal: by parameter, each of its parameter's shape; a part of the parameters will
                do.  Of the loss as it is, not scaled by GradScaler.  Unit: loss/param².

        Raises:
            ConfigError: a parameter that is not this optimizer's.
            ShapeError: a tensor of another shape than its parameter.
        """
        owned = {p for group in self.param_groups for p in group["params"]}
        for p, estimate in diagonal.items():
            if p not in owned:
                raise ConfigError(
                    f"Got curvature of a parameter of shape {tuple(p.shape)} that this optimizer "
                    "does not hold. Pass only its own parameters."
                )
            if estimate.shape != p.shape:
                raise ShapeError(
                    f"Got curvature of shape {tuple(estimate.shape)} for a parameter of shape "
                    f"{tuple(p.shape)}."
                )
        for group in self.param_groups:
            params = [p for p in group["params"] if p in diagonal]
            if params:
                self._average(params, [diagonal[p] for p in params], group["betas"][1])

    def _average(self, params: list[Tensor], diagonal: list[Tensor], beta2: float) -> None:
        for p in params:
            state = self.state[p]
            state.setdefault("hessian", torch.zeros_like(p))
            state["num_observed"] = state.get("num_observed", 0) + 1
        averages = [self.state[p]["hessian"] for p in params]
        fresh = [d.to(h) for d, h in zip(diagonal, averages, strict=True)]
        torch._foreach_lerp_(averages, fresh, 1 - beta2)

    @torch.no_grad()
    def observe_sampled_gradient(self, batch_size: int) -> None:
        """Take in the Gauss–Newton–Bartlett estimate batch_size · g², with g read from ``.grad``.

        Args:
            batch_size: number of labels that the mean loss was taken over.

        Raises:
            ConfigError: ``batch_size`` < 1, no gradient at all, or the estimator is Hutchinson's.
        """
        self.expect_estimator("gnb", "observe_hutchinson")
        if not batch_size >= 1:
            raise ConfigError(f"Got {batch_size=}: expected the number of sampled labels.")
        params = self._with_gradient()
        if not params:
            raise ConfigError(
                "No parameter has a gradient. Call observe_sampled_gradient() after the backward "
                "of a loss over labels sampled from the model, and zero_grad() after it."
            )
        gradients: list[Any] = [p.grad for p in params]
        estimate = torch._foreach_mul(gradients, gradients)
        torch._foreach_mul_(estimate, batch_size)
        self.observe_curvature(dict(zip(params, estimate, strict=True)))

    def observe_hutchinson(self, loss: Tensor, generator: torch.Generator | None = None) -> None:
        """Take in Hutchinson's estimate z ⊙ Hz with one Rademacher probe z.

        Args:
            loss: scalar with a live graph; call before ``loss.backward()``, which stays possible.
            generator: source of z.

        Raises:
            ConfigError: the estimator is Gauss–Newton–Bartlett's.
        """
        self.expect_estimator("hutchinson", "observe_sampled_gradient")
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        estimate = curvature.hutchinson_sample(loss, params, generator=generator)
        self.observe_curvature(dict(zip(params, estimate, strict=True)))

    def diagonal(self) -> dict[Tensor, Tensor]:
        """Give the diagonal in true units: h / (1 − β₂ᵏ) after k observations.

        Returns:
            New tensors by parameter, loss/param²; parameters never observed are left out.
        """
        return {
            p: self.state[p]["hessian"] / (1 - group["betas"][1] ** self.state[p]["num_observed"])
            for group in self.param_groups
            for p in group["params"]
            if "num_observed" in self.state.get(p, {})
        }

    def _with_gradient(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    def expect_estimator(self, needed: str, other: str) -> None:
        """Refuse the method that feeds ``needed``, naming the other, where that is not averaged.

        Raises:
            ConfigError: this Sophia averages another estimate.
        """
        if self.estimator != needed:
            raise ConfigError(
                f"This Sophia has estimator={self.estimator!r}. Call {other}(), or build it with "
                f"estimator={needed!r}."
            )
