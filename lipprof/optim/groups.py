"""How the parameter groups of AMOS reach both of its optimizers.

A group of AMOS carries the first optimizer's hyperparameters under their own names, so that any
scheduler finds what it expects, and three numbers more: ``second_lr``, the second optimizer's
learning rate at the last step, and ``base_lr``, ``second_base_lr``, both rates at the start.

    second_lr = second_base_lr · lr / base_lr

Where a learning rate is a tensor, as compiled and captured steps want it, schedulers write into it:
the rates at the start are numbers, and the second optimizer's tensor is written into as well.

A ``second_lr`` set during training, a number, holds from then on, at the present ``lr``.  Where the
first optimizer starts from lr = 0 there is no ratio, and the second's rate is not scaled.

What the user sets in a group: ``second_X`` is X of the second optimizer alone, ``weight_decay`` of
both, and ``lr``, as it differs from the first optimizer's default, scales the second's as well;
everything else is the first optimizer's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipprof.curvature import plain_name
from lipprof.optim.arm import Arm, Group

_SECOND = "second_"
_FACE_KEYS = frozenset({"params", "param_names", "base_lr"})


@dataclass(frozen=True, slots=True)
class Members:
    """Tensors of one group with their names, and what each optimizer is told about them."""

    names: Sequence[str]
    tensors: Sequence[Tensor]
    first: Group
    second: Group


def given_in(group: Group) -> Group:
    """What the user set in a group, apart from its parameters."""
    return {key: value for key, value in group.items() if key not in _FACE_KEYS}


def members(group: Group, given: Group, *, offset: int) -> Members:
    """Split what was given between the optimizers.

    Args:
        group: of AMOS, with ``params`` and perhaps ``param_names``.
        given: see ``given_in``.
        offset: number of tensors before this group; names those that have none.

    Returns:
        The group's members.
    """
    second = {k.removeprefix(_SECOND): v for k, v in given.items() if k.startswith(_SECOND)}
    if "weight_decay" in given:
        second.setdefault("weight_decay", given["weight_decay"])
    positional = [f"param{offset + index}" for index in range(len(group["params"]))]
    return Members(
        names=[plain_name(name) for name in group.get("param_names", positional)],
        tensors=group["params"],
        first={k: v for k, v in given.items() if not k.startswith(_SECOND)},
        second=second,
    )


class GroupLink:
    """Keeps one group of AMOS and the groups of its two optimizers in step."""

    def __init__(self, face: Group, given: Group, index: int, arms: tuple[Arm, Arm]) -> None:
        self._index = index
        first, second = arms
        face.update({k: v for k, v in first.groups[index].items() if k != "params"})
        face["base_lr"] = float(face["lr"])
        own = second.groups[index].get("lr", second.optimizer.defaults["lr"])
        second_lr, default = float(own), float(first.optimizer.defaults["lr"])
        if "lr" in given and "second_lr" not in given and default:
            second_lr *= face["base_lr"] / default
        face["second_base_lr"] = second_lr
        face["second_lr"] = torch.full_like(own, second_lr) if torch.is_tensor(own) else second_lr
        self.mark(face, _hyper(face))

    def mark(self, face: Group, pushed: Group) -> None:
        """Take ``pushed`` as what the first optimizer was told last; see ``push``."""
        self.pushed = dict(pushed)
        self._second_lr = face["second_lr"]

    def push(self, face: Group, arms: tuple[Arm, Arm]) -> None:
        """Hand on what changed in the group; what an optimizer changes itself stays its own."""
        lr = face["lr"]
        scale = lr / face["base_lr"] if face["base_lr"] else 1.0
        if torch.is_tensor(face["second_lr"]):
            face["second_lr"].fill_(face["second_base_lr"] * scale)
        else:
            scale = float(scale)
            if face["second_lr"] != self._second_lr and scale:  # the user's
                face["second_base_lr"] = face["second_lr"] / scale
            face["second_lr"] = face["second_base_lr"] * scale
        self._second_lr = face["second_lr"]
        changed = {
            key: value
            for key, value in _hyper(face).items()
            if key not in self.pushed or not _same(value, self.pushed[key])
        }
        self.pushed.update(changed)
        if torch.is_tensor(lr):
            changed["lr"] = lr
        arms[0].configure(self._index, changed)
        arms[1].configure(self._index, {"lr": face["second_lr"]})


def _hyper(face: Group) -> Group:
    return {k: v for k, v in given_in(face).items() if not k.startswith(_SECOND)}


def _same(a: Any, b: Any) -> bool:
    return a is b or (not torch.is_tensor(a) and not torch.is_tensor(b) and a == b)
