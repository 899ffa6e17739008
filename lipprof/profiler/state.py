"""What a profiler needs to go on after a restart, for a checkpoint.

Plain numbers, texts, lists, dicts and tensors: ``torch.load(weights_only=True)`` reads it, from
whatever device.  Its size, in numbers as wide as the parameters (n of them): θ at the newest
measurement and its eigenvectors, (1 + top + bottom) n; with ``aggregate="mean"`` 2n more, with
``"max"`` 4n.  The rest is a few numbers per tensor.

Not in it: the newest measurement and recommendation, which are in the run file, and whether a
sentence was said already.
"""

import hashlib
from typing import Any, Protocol

from lipprof.curvature import Partition
from lipprof.errors import ConfigError
from lipprof.settings import Settings

State = dict[str, Any]


class Stateful(Protocol):
    """What has a state of its own."""

    def state_dict(self) -> State:
        """Return what ``load_state_dict`` needs to go on exactly."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Restore what ``state_dict`` returned."""
        ...


class ProfilerState:
    """Saves and restores the parts of a profiler together.

    Args:
        partition: the units of the run.
        settings: of the run.
        parts: None for what is not in use.
    """

    def __init__(self, partition: Partition, settings: Settings, **parts: Stateful | None) -> None:
        units = repr(list(zip(partition.names, partition.numel, strict=True)))
        self._subject = {
            "units": hashlib.sha256(units.encode()).hexdigest(),
            "top": settings.top,
            "bottom": settings.bottom,
            "aggregate": settings.aggregate,
        }
        self._parts = {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> State:
        """Return what ``load_state_dict`` needs to go on exactly."""
        states = {name: part.state_dict() for name, part in self._parts.items()}
        return {"subject": self._subject} | states

    def load_state_dict(self, state: State) -> None:
        """Restore what ``state_dict`` returned; a part that it does not have stays as it is.

        Raises:
            ConfigError: it is of other units, or of other settings that must not change.
        """
        subject = state.get("subject", self._subject)
        for name, own in self._subject.items():
            if subject[name] != own:
                raise ConfigError(self._refusal(name, subject))
        for name, part in self._parts.items():
            if state.get(name) is not None:
                part.load_state_dict(state[name])

    def _refusal(self, name: str, subject: State) -> str:
        what = "other units (tensors, modules or chunks)"
        if name != "units":
            what = f"{name}={subject[name]!r}, and now it is {self._subject[name]!r}"
        return (
            f"This state of a profiler is of {what}, so its measurements cannot be gone on from. "
            "Attach as before, or write a new run file and load the iteration alone: "
            "prof.load_state_dict({'iteration': state['iteration']})."
        )
