# pyright: reportPrivateImportUsage=false
"""What keeps a step whole: gradients that are not finite, and an optimizer that raises midway.

A non-finite gradient makes parameters and moments non-finite for good, so it is refused while both
are still what they were.  The check is one pass over the gradients and one number that the host
reads: free of waiting on a CPU, a synchronisation elsewhere.

An optimizer that raises has done what it did: the one before it has stepped, and of its own tensors
some may have.  Going back takes a copy of parameters and state, made before.

Neither happens inside a compiled step, which could not read that number.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from lipprof.errors import NonfiniteError
from lipprof.optim.arm import Arm, Group, check_choice
from lipprof.optim.groups import members

Rollback = Literal["changes", "always", "never"]
SHOWN = 3  # tensors that a message names


class Guard:
    """Steps the arms of AMOS, as a whole or not at all as far as was asked for.

    Args:
        check_finite: refuse a step with a gradient that is not finite.  None: where gradients are
            in host memory, at the price of one pass over them (up to 0.1 of AdamW's foreach step,
            0.3 of the fused one); True: everywhere, which waits for an accelerator once per step.
            Under GradScaler, which skips such steps, it finds nothing.
        rollback: when to copy parameters and state, so that an optimizer that raises leaves both as
            before the step.  ``changes``: at the first step after a tensor has moved, a group or
            a checkpoint has come, when something new can fail; ``always``: at every step, at the
            price of memory for both and, on a CPU, nearly three times the step; ``never``.

    Raises:
        ConfigError: an unknown ``rollback``.
    """  # noqa: DOC502 - raised by the check

    def __init__(self, check_finite: bool | None, rollback: Rollback) -> None:
        check_choice("rollback", rollback, get_args(Rollback))
        self._check_finite = check_finite
        self._rollback: Rollback = rollback

    def check(self, groups: Sequence[Group]) -> None:
        """Refuse gradients with NaN or infinite entries, where that was asked for.

        Args:
            groups: of AMOS.

        Raises:
            NonfiniteError: says whose gradient, and how many of its entries.
        """
        if self._check_finite is False or torch.compiler.is_compiling():
            return
        params = [p for group in groups for p in group["params"] if p.grad is not None]
        require_finite([p for p in params if self._check_finite or p.is_cpu], groups)

    def step(self, arms: Sequence[Arm]) -> None:
        """Step one arm after the other."""

        def step() -> None:
            for arm in arms:
                arm.step()

        new = not all(arm.tried for arm in arms)
        wanted = self._rollback == "always" or (self._rollback == "changes" and new)
        if wanted and not torch.compiler.is_compiling():
            step_or_restore([arm.optimizer for arm in arms], step)
            return
        try:
            step()
        except Exception as error:
            error.add_note(
                "An optimizer of AMOS raised within a step: some parameters have taken it and "
                "others have not. Load the last checkpoint; with rollback='always' such a step is "
                "undone."
            )
            raise


def require_finite(params: Sequence[Tensor], groups: Sequence[Group]) -> None:
    """Refuse gradients with NaN or infinite entries.

    Args:
        params: parameters that have a gradient.
        groups: have their names.

    Raises:
        NonfiniteError: says whose gradient, and how many of its entries.
    """
    entries = {p: _entries(p.grad) for p in params if p.grad is not None}
    if not entries or _norms_are_finite(list(entries.values())):
        return
    bad = {p: int((~values.isfinite()).sum()) for p, values in entries.items()}
    named = [
        f"{name} ({bad[p]:,} of {entries[p].numel():,} entries)"
        for name, p in _named(groups)
        if bad.get(p)
    ]
    if not named:  # a norm has overflowed, and no entry
        return
    more = f" and {len(named) - SHOWN} more tensors" if len(named) > SHOWN else ""
    raise NonfiniteError(
        f"NaN or infinite gradient of {', '.join(named[:SHOWN])}{more}. Parameters and state are "
        "as before this step. Lower the learning rate, clip gradients or use GradScaler; with "
        "check_finite=False AMOS steps all the same."
    )


def step_or_restore(optimizers: Sequence[Optimizer], step: Callable[[], Any]) -> None:
    """Call ``step``; where it raises, put back parameters and state of the optimizers.

    The copies are of the size of both.  Out of memory with them, it is tried once more without.

    Args:
        optimizers: those that ``step`` advances.
        step: what may raise.
    """
    try:
        saved = [_Saved(optimizer) for optimizer in optimizers]
        try:
            step()
        except BaseException:
            for copies in saved:
                copies.restore()
            raise
    except torch.OutOfMemoryError:
        saved = []  # which may be what there was no memory for
    else:
        return
    step()


class _Saved:
    """An optimizer's groups, state, and the parameters that its next step may write."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._groups = [(group, dict(group)) for group in optimizer.param_groups]
        params = [p for group in optimizer.param_groups for p in group["params"]]
        self._params = [(p, p.detach().clone()) for p in params if p.grad is not None]
        self._state = {p: copy.deepcopy(state) for p, state in optimizer.state.items()}

    def restore(self) -> None:
        for p, value in self._params:
            p.copy_(value)
        for group, before in self._groups:
            group.clear()
            group.update(before)
        self._optimizer.state.clear()
        self._optimizer.state.update(self._state)


def _named(groups: Sequence[Group]) -> Iterator[tuple[str, Tensor]]:
    offset = 0
    for group in groups:
        here = members(group, {}, offset=offset)
        yield from zip(here.names, here.tensors, strict=True)
        offset += len(here.tensors)


def _entries(gradient: Tensor) -> Tensor:
    return gradient.detach() if gradient.layout is torch.strided else gradient.coalesce().values()


def _norms_are_finite(entries: list[Tensor]) -> bool:
    norms = torch._foreach_norm(entries)
    return bool(torch.stack([norm.to(norms[0].device) for norm in norms]).isfinite().all())
