"""One of AMOS's two optimizers, over a changing part of the tensors it was built for.

The optimizer is built once, by the user's factory, over everything it may ever hold; after that
only the lists in its ``param_groups`` change.  So it steps just the tensors assigned to it, by its
own foreach or fused path.  Groups without tensors are taken out: not every optimizer bears them.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lipprof.errors import ConfigError

Factory = Callable[[Any], Optimizer]
Group = dict[str, Any]


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a word that is none of those known.

    Raises:
        ConfigError: it is another.
    """
    if value not in known:
        raise ConfigError(f"Got {name}={value!r}: expected one of {', '.join(known)}.")


def check_factory(role: str, factory: Any) -> None:
    """Refuse what is no factory.

    Raises:
        ConfigError: an optimizer, or something that cannot be called.
    """
    if isinstance(factory, Optimizer) or not callable(factory):
        kind = type(factory).__name__
        example = kind if isinstance(factory, Optimizer) else "SGD"
        raise ConfigError(
            f"`{role}` is a {kind}; expected a factory that builds an optimizer from parameters. "
            f"Pass functools.partial({example}, lr=...)."
        )


def check_step(optimizer: Optimizer, host: str) -> None:
    """Refuse an optimizer that evaluates the loss itself.

    Raises:
        ConfigError: its step needs a closure.
    """
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(
            f"{type(optimizer).__name__} evaluates the loss itself, through a closure. {host} "
            "takes optimizers that step on the gradients they find."
        )


class Arm:
    """An optimizer and, group by group, the tensors it steps now and those it keeps warm."""

    def __init__(self, factory: Factory, groups: Sequence[Group]) -> None:
        self._factory = factory
        self._hyper = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        self._whole = [list(group["params"]) for group in groups]
        self.optimizer = factory([dict(group) for group in groups if group["params"]])
        built = iter(self.optimizer.param_groups)
        self.groups = [next(built) if group["params"] else dict(group) for group in groups]
        self._idle: list[Group] = []
        self.tried = False  # whether it has stepped with the tensors and groups that it has now

    def add_group(self, group: Group) -> None:
        """Take in one more group of AMOS: ``params`` it may hold, and hyperparameters."""
        self._hyper.append({k: v for k, v in group.items() if k != "params"})
        self._whole.append(list(group["params"]))
        if group["params"]:
            self.optimizer.add_param_group(dict(group))
            self.groups.append(self.optimizer.param_groups[-1])
            self.tried = False
        else:
            self.groups.append(dict(group))

    def assign(self, active: Sequence[list[Tensor]], idle: Sequence[list[Tensor]]) -> None:
        """Set the tensors to step and the tensors to keep warm, group by group."""
        self.tried = False
        for group, tensors in zip(self.groups, active, strict=True):
            group["params"] = tensors
        self._idle = [
            {**group, "params": tensors, "lr": 0.0}
            for group, tensors in zip(self.groups, idle, strict=True)
        ]
        self._install([*self.groups, *self._idle])

    def configure(self, index: int, hyper: Group) -> None:
        """Change hyperparameters of one group."""
        self.groups[index].update(hyper)
        self._idle[index].update(hyper, lr=0.0)

    def step(self) -> None:
        """Step the assigned tensors and advance the state of the idle ones."""
        if self.optimizer.param_groups:
            self.optimizer.step()
        self.tried = True

    def rehearse(self, arriving: Mapping[Tensor, dict[str, Any]]) -> dict[Tensor, Tensor]:
        """Find, on copies, the update of every tensor that it may hold.

        Args:
            arriving: state, by tensor, on top of what the optimizer has.

        Returns:
            Updates by tensor; zero where there is no gradient.
        """
        copies = {p: _twin(p) for tensors in self._whole for p in tensors}
        used = [index for index, tensors in enumerate(self._whole) if tensors]
        optimizer = self._factory([
            {**self._hyper[index], "params": [copies[p] for p in self._whole[index]]}
            for index in used
        ])
        for index, group in zip(used, optimizer.param_groups, strict=True):
            group.update({k: v for k, v in self.groups[index].items() if k != "params"})
        for p, twin in copies.items():
            state = {**self.optimizer.state.get(p, {}), **arriving.get(p, {})}
            if state:
                optimizer.state[twin].update(copy.deepcopy(state))
        optimizer.step()
        return {p: twin.detach() - p.detach() for p, twin in copies.items()}

    @contextmanager
    def whole(self) -> Iterator[Optimizer]:
        """Lend the optimizer as it would be with every tensor it may hold assigned to it."""
        assigned = self.optimizer.param_groups
        self._install([{**g, "params": p} for g, p in zip(self.groups, self._whole, strict=True)])
        try:
            yield self.optimizer
        finally:
            self.optimizer.param_groups = assigned

    def restart(self, tensor: Tensor, index: int, keep: frozenset[str] = frozenset()) -> None:
        """Put the state of a tensor back to what the optimizer's constructor gives it.

        Args:
            tensor: the tensor.
            index: its group.
            keep: keys of the state that are left as they are.
        """
        state = self.optimizer.state
        kept = {key: value for key, value in state.pop(tensor, {}).items() if key in keep}
        fresh = self._factory([{"params": [tensor], **self._hyper[index]}])
        state_now = {**fresh.state.get(tensor, {}), **kept}
        if state_now:
            state[tensor] = state_now

    def hyperparameters(self) -> list[Group]:
        """Copy the hyperparameters of every group, for a state_dict."""
        return [{k: v for k, v in group.items() if k != "params"} for group in self.groups]

    def load_hyperparameters(self, groups: Sequence[Group]) -> None:
        """Set what ``hyperparameters`` returned."""
        for group, hyper in zip(self.groups, groups, strict=True):
            group.update(hyper)

    def counters(self) -> list[Group]:
        """What the optimizer keeps in its groups beside hyperparameters, as a count of steps."""
        given = self.optimizer.defaults.keys() | {"params", "param_names"}
        return [
            {key: group[key] for key in group.keys() - given - hyper.keys()}
            for group, hyper in zip(self.groups, self._hyper, strict=True)
        ]

    def load_counters(self, counters: Sequence[Group]) -> None:
        """Set what ``counters`` returned, in place of what it returns now."""
        for group, mine, theirs in zip(self.groups, self.counters(), counters, strict=True):
            for key in mine:
                del group[key]
            group.update(theirs)

    def _install(self, groups: Sequence[Group]) -> None:
        self.optimizer.param_groups = [group for group in groups if group["params"]]


def _twin(p: Tensor) -> Tensor:
    twin = p.detach().clone().requires_grad_(p.requires_grad)
    twin.grad = None if p.grad is None else p.grad.detach().clone()
    return twin
