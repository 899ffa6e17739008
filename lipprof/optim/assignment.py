"""Which unit is on which side: the two arms of AMOS, who may switch, and the switches.

A unit is one handle or several (see ``handles``); those that an arm refuses stay on the first side
while the rest of the unit switches.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lipprof.advice import Choice, Recommendation
from lipprof.curvature import Partition, Piece, Units
from lipprof.errors import ConfigError
from lipprof.optim.arm import Arm, Factory, Group
from lipprof.optim.groups import Members
from lipprof.optim.handles import Handle, gradients_lent
from lipprof.optim.handover import CURVATURE_KEYS, arriving_state, stays_warm
from lipprof.optim.switches import Switch, announced
from lipprof.optim.trial import Trials

SIDES = ("first", "second")

Owners = dict[str, tuple[Tensor, int, Members]]
"""Tensors by name, with the number of their group and its members."""


@dataclass(slots=True)
class Unit:
    """What switches together: where it is, and what of it may leave."""

    name: str
    handles: list[Handle]
    choice: Choice = Choice.FIRST

    @property
    def movable(self) -> list[Handle]:
        """The handles that may leave the first side."""
        return [handle for handle in self.handles if not handle.bound]

    @property
    def bound(self) -> str:
        """Why all of it always stays on the first side; empty: some of it may leave."""
        return "" if self.movable else "; ".join(dict.fromkeys(h.bound for h in self.handles))

    @property
    def plan(self) -> str:
        """Whether it may switch, and what stays."""
        staying = [f"{h.name} ({h.bound})" for h in self.handles if h.bound]
        apart = f", but for {', '.join(staying)}" if staying else ""
        return self.bound or f"may switch{apart}"


class Assignment:
    """Both optimizers and what each of them steps."""

    def __init__(
        self,
        factories: tuple[Factory, Factory],
        groups: Sequence[Members],
        *,
        units: Units | Partition,
        matrices: bool,
        eligible: Callable[[str, Tensor], bool] | None,
        start: Choice,
        warm: bool,
    ) -> None:
        self._trials = Trials(factories[0]), Trials(factories[1])
        self._matrices = matrices
        self._eligible = eligible
        self._start = start
        self.warm = warm
        self._partition = units if isinstance(units, Partition) else None
        self.kind: Units = units.units if isinstance(units, Partition) else units
        self.units: list[Unit] = []
        self.units = self._enrol(groups)
        if all(unit.bound for unit in self.units):
            reasons = "; ".join(dict.fromkeys(unit.bound for unit in self.units))
            raise ConfigError(f"No tensor may use the second optimizer: {reasons}.")
        both = [self._arm_groups(members, i) for i, members in enumerate(groups)]
        self.first = Arm(factories[0], [first for first, _ in both])
        self.second = Arm(factories[1], [second for _, second in both])
        self.place()

    def add_group(self, members: Members) -> None:
        """Take in one more parameter group, with units of its own."""
        index = len(self.first.groups)
        self.units += self._enrol([members], index)
        first, second = self._arm_groups(members, index)
        self.first.add_group(first)
        self.second.add_group(second)
        self.place()

    @property
    def handles(self) -> Iterator[Handle]:
        """Of all units."""
        return (handle for unit in self.units for handle in unit.handles)

    def views(self) -> dict[Tensor, tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """What the optimizers hold that is a part of a parameter, and which part of which."""
        return {handle.tensor: (handle.parameter, handle.of) for handle in self._views}

    def gradients_lent(self) -> AbstractContextManager[None]:
        """Show the gradients to the optimizers; see ``handles``."""
        return gradients_lent(self._views)

    def _enrol(self, groups: Sequence[Members], first_index: int = 0) -> list[Unit]:
        owners: Owners = {
            name: (tensor, index, members)
            for index, members in enumerate(groups, first_index)
            for name, tensor in zip(members.names, members.tensors, strict=True)
        }
        _refuse_twins([name for members in groups for name in members.names])
        partition = self._partition_of(owners, later=first_index > 0)
        parts = dict(zip(partition.names, partition.pieces, strict=True))
        placed = {piece.tensor for pieces in partition.pieces for piece in pieces}
        for name, (tensor, *_) in owners.items():  # a frozen tensor is a unit of its own
            if name not in placed:
                parts[name] = (Piece(name, 0, tensor.numel(), tensor.numel()),)
        _refuse_twins([*(unit.name for unit in self.units), *parts])
        order = {name: place for place, name in enumerate(owners)}
        units = []
        for name, pieces in sorted(
            parts.items(), key=lambda part: (order[part[1][0].tensor], part[1][0].start)
        ):
            unit = Unit(name, [self._handle(piece, owners) for piece in pieces])
            unit.choice = Choice.FIRST if unit.bound else self._start
            units.append(unit)
        return units

    def _partition_of(self, owners: Owners, *, later: bool) -> Partition:
        if self._partition is None or later:
            named = ((name, tensor) for name, (tensor, *_) in owners.items())
            return Partition.of(named, self.kind)
        unknown = {
            piece.tensor
            for pieces in self._partition.pieces
            for piece in pieces
            if piece.tensor not in owners or owners[piece.tensor][0].numel() != piece.numel
        }
        if unknown:
            raise ConfigError(
                f"The partition does not fit: it has {', '.join(sorted(unknown)[:5])}, which AMOS "
                "was not given, or of another size. Partition the named parameters of AMOS."
            )
        return self._partition

    def _handle(self, piece: Piece, owners: Owners) -> Handle:
        tensor, index, members = owners[piece.tensor]
        handle = Handle(piece, tensor, index, matrix=self._matrices and tensor.ndim > 2)
        is_slice = bool(handle.key)
        first, second = self._trials
        refused = first.refusal(handle.tensor, index, members.first, is_slice=is_slice)
        if refused is not None:
            raise ConfigError(
                f"The first optimizer must take every tensor, but refuses {piece.name} of shape "
                f"{tuple(handle.tensor.shape)}: {refused}"
            )
        if self._eligible is not None and not self._eligible(piece.tensor, tensor):
            handle.bound = "excluded by `eligible`"
            return handle
        refused = second.refusal(handle.tensor, index, members.second, is_slice=is_slice)
        if refused is not None:
            handle.bound = f"the second optimizer refuses it: {refused}"
        return handle

    def _arm_groups(self, members: Members, index: int) -> tuple[Group, Group]:
        handles = [handle for handle in self.handles if handle.group == index]
        return (
            {"params": [h.tensor for h in handles], **members.first},
            {"params": [h.tensor for h in handles if not h.bound], **members.second},
        )

    def place(self) -> None:
        """Hand each optimizer its tensors, by the units' present choices."""
        warm = [self._keeps_warm(group) for group in self.first.groups]
        stay: list[list[Tensor]] = [[] for _ in warm]
        away: list[list[Tensor]] = [[] for _ in warm]
        for unit in self.units:
            for handle in unit.handles:
                leaves = unit.choice is Choice.SECOND and not handle.bound
                (away if leaves else stay)[handle.group].append(handle.tensor)
        idle = [gone if keep else [] for gone, keep in zip(away, warm, strict=True)]
        self.first.assign(stay, idle)
        self.second.assign(away, [[] for _ in idle])
        self._views = [handle for handle in self.handles if handle.is_view]

    def require(self, names: Sequence[str], *, named: bool) -> None:
        """Check that names are those of the units, but for frozen ones.

        Args:
            names: to be checked.
            named: whether the parameters were given with names.

        Raises:
            ConfigError: they are not.
        """
        unknown = set(names) - {unit.name for unit in self.units}
        trained = (
            unit.name
            for unit in self.units
            if any(handle.parameter.requires_grad for handle in unit.movable)
        )
        missing = set(trained) - set(names)
        if unknown and not named:
            raise ConfigError(
                "A recommendation is by name, and AMOS was given parameters without names. "
                "Pass model.named_parameters()."
            )
        if unknown or missing:
            raise ConfigError(
                f"The recommendation does not fit. Unknown here: {_listed(unknown)}; missing in "
                f"it: {_listed(missing)}. Profile the parameters that AMOS optimizes, by the same "
                "units; chunks are cut in the order of the parameters."
            )

    def state(self) -> defaultdict[Tensor, dict[str, Any]]:
        """The state of both optimizers by parameter and side, and of slices by their key."""
        merged: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        for side, arm in zip(SIDES, (self.first, self.second), strict=True):
            for handle in self.handles:
                state = arm.optimizer.state.get(handle.tensor)
                if state and handle.key:
                    merged[handle.parameter].setdefault(side, {})[handle.key] = state
                elif state:
                    merged[handle.parameter][side] = state
        return merged

    def load_state(self, merged: Mapping[Tensor, dict[str, Any]]) -> None:
        """Give both optimizers the state that ``state`` returned."""
        for side, arm in zip(SIDES, (self.first, self.second), strict=True):
            arm.optimizer.state.clear()
            for handle in self.handles:
                state = merged.get(handle.parameter, {}).get(side, {})
                state = state.get(handle.key) if handle.key else state
                if state:
                    arm.optimizer.state[handle.tensor] = state

    def _keeps_warm(self, group: Group) -> bool:
        return self.warm and stays_warm(self.first.optimizer, group)

    def apply(self, recommendation: Recommendation) -> list[Switch]:
        """Move the units whose choice has changed, with their state.

        Returns:
            The switches, each of them logged.
        """
        by_name = {unit.name: unit for unit in self.units}
        switches = []
        for index, name in enumerate(recommendation.names):
            unit, choice = by_name[name], Choice(int(recommendation.choice[index]))
            if unit.bound or choice in {Choice.NONE, unit.choice}:
                continue
            self._change(unit, choice)
            switches.append(announced(recommendation, index))
        if switches:
            self.place()
        return switches

    def move_all(self, choice: Choice) -> None:
        """Move everything that may switch to one side, with its state, and log nothing."""
        for unit in self.units:
            if not unit.bound and unit.choice is not choice:
                self._change(unit, choice)
        self.place()

    def _change(self, unit: Unit, choice: Choice) -> None:
        for handle in unit.movable:
            self._move(handle, choice)
        unit.choice = choice

    def _move(self, handle: Handle, choice: Choice) -> None:
        p, index = handle.tensor, handle.group
        self.second.restart(p, index, keep=CURVATURE_KEYS)
        if choice is Choice.FIRST:
            return
        if self.warm:
            first = (self.first.optimizer, self.first.groups[index])
            second = (self.second.optimizer, self.second.groups[index])
            self.second.optimizer.state[p].update(arriving_state(p, first, second))
        if not self._keeps_warm(self.first.groups[index]):
            self.first.restart(p, index)


def movable_sizes(units: Iterable[Unit]) -> tuple[list[str], list[int]]:
    """Names and sizes of what may switch."""
    movable = [unit for unit in units if unit.movable]
    sizes = [sum(handle.tensor.numel() for handle in unit.movable) for unit in movable]
    return [unit.name for unit in movable], sizes


def _refuse_twins(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        raise ConfigError(f"Two tensors have the same name: {', '.join(twice[:5])}.")


def _listed(names: set[str]) -> str:
    shown = sorted(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"
