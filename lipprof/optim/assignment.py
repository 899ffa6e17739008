"""Which tensor is on which side: the two arms of AMOS, who may switch, and the switches.

Whether an optimizer can take a tensor is found by building it on that tensor alone; constructors
are cheap and say it better than any list of rules (``torch.optim.Muon``: matrices only).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from lipprof.advice import Choice, Recommendation
from lipprof.errors import ConfigError
from lipprof.optim.arm import Arm, Factory, Group, refusal
from lipprof.optim.groups import Members
from lipprof.optim.handover import CURVATURE_KEYS, arriving_state, stays_warm

logger = logging.getLogger("lipprof")


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One tensor changed sides."""

    iteration: int  # completed optimizer steps
    name: str
    choice: Choice
    reason: str


@dataclass(slots=True)
class Unit:
    """One tensor: where it is, and whether it may leave."""

    name: str
    tensor: Tensor
    group: int
    bound: str  # why it always stays on the first side; empty: it may switch
    choice: Choice = Choice.FIRST


class Assignment:
    """Both optimizers and the tensors that each of them steps."""

    def __init__(
        self,
        factories: tuple[Factory, Factory],
        groups: Sequence[Members],
        *,
        eligible: Callable[[str, Tensor], bool] | None,
        start: Choice,
        warm: bool,
    ) -> None:
        self._factories = factories
        self._eligible = eligible
        self._start = start
        self._warm = warm
        self.units: list[Unit] = []
        for index, group in enumerate(groups):
            self.units += self._enrol(group, index)
        if all(unit.bound for unit in self.units):
            reasons = "; ".join(dict.fromkeys(unit.bound for unit in self.units))
            raise ConfigError(f"No tensor may use the second optimizer: {reasons}.")
        self.first = Arm(factories[0], [{"params": list(g.tensors), **g.first} for g in groups])
        self.second = Arm(factories[1], [self._second_group(g, i) for i, g in enumerate(groups)])
        self.place()

    def add_group(self, members: Members) -> None:
        """Take in one more parameter group."""
        index = len(self.first.groups)
        self.units += self._enrol(members, index)
        self.first.add_group({"params": list(members.tensors), **members.first})
        self.second.add_group(self._second_group(members, index))
        self.place()

    def _enrol(self, members: Members, index: int) -> list[Unit]:
        units = []
        taken = [unit.name for unit in self.units] + list(members.names)
        if len(set(taken)) < len(taken):
            twice = sorted({name for name in taken if taken.count(name) > 1})
            raise ConfigError(f"Two tensors have the same name: {', '.join(twice[:5])}.")
        for name, tensor in zip(members.names, members.tensors, strict=True):
            refused = refusal(self._factories[0], tensor, members.first)
            if refused is not None:
                raise ConfigError(
                    f"The first optimizer must take every tensor, but refuses {name} of shape "
                    f"{tuple(tensor.shape)}: {refused}"
                )
            unit = Unit(name, tensor, index, self._bound(name, tensor, members.second))
            unit.choice = Choice.FIRST if unit.bound else self._start
            units.append(unit)
        return units

    def _bound(self, name: str, tensor: Tensor, hyper: Group) -> str:
        if self._eligible is not None and not self._eligible(name, tensor):
            return "excluded by `eligible`"
        refused = refusal(self._factories[1], tensor, hyper)
        return "" if refused is None else f"the second optimizer refuses it: {refused}"

    def _second_group(self, members: Members, index: int) -> Group:
        tensors = [u.tensor for u in self.units if u.group == index and not u.bound]
        return {"params": tensors, **members.second}

    def place(self) -> None:
        """Hand each optimizer its tensors, by the units' present choices."""
        active: tuple[list[list[Tensor]], ...] = ([], [])
        idle: list[list[Tensor]] = []
        for index, group in enumerate(self.first.groups):
            here = [u for u in self.units if u.group == index]
            away = [u.tensor for u in here if u.choice is Choice.SECOND]
            active[0].append([u.tensor for u in here if u.choice is Choice.FIRST])
            active[1].append(away)
            idle.append(away if self._keeps_warm(group) else [])
        self.first.assign(active[0], idle)
        self.second.assign(active[1], [[] for _ in idle])

    def _keeps_warm(self, group: Group) -> bool:
        return self._warm and stays_warm(self.first.optimizer, group)

    def apply(self, recommendation: Recommendation) -> list[Switch]:
        """Move the tensors whose choice has changed, with their state.

        Returns:
            The switches, each of them logged.
        """
        by_name = {unit.name: unit for unit in self.units}
        switches = []
        for index, name in enumerate(recommendation.names):
            unit, choice = by_name[name], Choice(int(recommendation.choice[index]))
            if unit.bound or choice in {Choice.NONE, unit.choice}:
                continue
            self._move(unit, choice)
            reason = recommendation.reason(index)
            switches.append(
                Switch(iteration=recommendation.iteration, name=name, choice=choice, reason=reason)
            )
            logger.info(
                "iteration %d: %s to the %s optimizer: %s",
                recommendation.iteration,
                name,
                choice.label,
                reason,
            )
        if switches:
            self.place()
        return switches

    def _move(self, unit: Unit, choice: Choice) -> None:
        p, index = unit.tensor, unit.group
        self.second.restart(p, index, keep=CURVATURE_KEYS)
        if choice is Choice.SECOND:
            if self._warm:
                first = (self.first.optimizer, self.first.groups[index])
                second = (self.second.optimizer, self.second.groups[index])
                self.second.optimizer.state[p].update(arriving_state(p, first, second))
            if not self._keeps_warm(self.first.groups[index]):
                self.first.restart(p, index)
        unit.choice = choice
