"""Finding the training loop of a program that does not know of lipprof.

Three things are watched until the loop is found, and none of them afterwards: optimizers as they
are made (``Optimizer.__init__``), modules as they run and optimizers as they step (torch's global
hooks).  The first module to run that holds at least half of the largest optimizer's parameters is
taken with it.  It is found in its first forward, so that iteration 0 can be measured.  Where
only the step gives the loop away (the model is not called, or calls are compiled), measuring starts
at the next scheduled iteration.
"""

import atexit
import functools
import gc
import os
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from lipprof.profiler.sources.hooks import after_closure

T = TypeVar("T")

_COMPILED_WITH_HOOKS = r"Using `torch.compile\(module\)` when there are global hooks"


class Attached(Protocol):
    """What is attached to a loop that was found."""

    model: nn.Module  # whose forwards it watches

    def enter_forward(self, arguments: tuple[Any, ...]) -> None:
        """Take in that a forward of the model, just begun, precedes it."""
        ...

    def measure_if_due(self) -> None:
        """Measure here, between backward and update, where that is wanted."""
        ...


A = TypeVar("A", bound=Attached)


class LoopFinder(ABC, Generic[A]):
    """Attaches something to the first training loop that this process runs.

    Args:
        say: is given one line at a time for the user.
        model: class name or index (in the order of first calls) of the model; default: by size.
        optimizer: class name or index (in the order of creation); default: the largest.
    """

    purpose: ClassVar[str]  # what becomes of a loop, as a participle

    def __init__(
        self, say: Callable[[str], None], *, model: str | None = None, optimizer: str | None = None
    ) -> None:
        self.profiler: A | None = None
        self._say, self._model, self._optimizer = say, model, optimizer
        self._optimizers: list[weakref.ref[Optimizer]] = []
        self._modules: list[weakref.ref[nn.Module]] = []  # called, with parameters of the optimizer
        self._called: list[str] = []  # their class names
        self._judged: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._made: list[str] = []  # class names of all optimizers
        self._stepped = self._ownerless = self._picked_none = False
        self._closure_seen = False
        self._given_up = False
        self._removers: list[Callable[[], None]] = []
        self._unwatch_steps: Callable[[], None] = lambda: None
        self._process = os.getpid()

    @abstractmethod
    def attach(self, model: nn.Module, optimizer: Optimizer, *, first: int = 0) -> None:
        """Attach to the loop that was found.

        Args:
            model: the model.
            optimizer: its optimizer.
            first: steps before the first that may be measured.
        """

    @abstractmethod
    def conclude(self, attached: A) -> None:
        """Finish what was attached, and say what came of it."""

    def finish(self) -> None:
        """Stop watching and say what came of it; called at exit."""
        if os.getpid() != self._process:
            return
        self._let_go()
        if self.profiler is not None:
            self.conclude(self.profiler)
        elif not self._given_up:
            self._say(f"nothing was {self.purpose}: {self._missing()}")

    def watch(self) -> None:
        """Wait for a training loop; on every rank but 0 of a launcher there is nothing to do."""
        if int(os.environ.get("RANK", "0")) != 0:
            self._given_up = True
            return
        self._removers.append(_watch_construction(self._guarded(self.consider)))
        atexit.register(self.finish)

    def _guarded(self, listener: Callable[..., Any]) -> Callable[..., Any]:
        """Keep failures of a listener from the program, and forked copies from listening."""

        def guarded(*arguments: Any) -> Any:
            if self.profiler is not None or self._given_up or os.getpid() != self._process:
                return None
            try:
                return listener(*arguments)
            except Exception as error:  # noqa: BLE001 - the program goes on whatever happens
                self._give_up(f"nothing is {self.purpose}: {type(error).__name__}: {error}")

        return guarded

    def consider(self, optimizer: Optimizer) -> None:
        """Look for the model of this optimizer, among others that were considered."""
        if not self._optimizers:
            self._removers += [
                register_module_forward_pre_hook(self._guarded(self._on_forward)).remove,
                _ignore_warning(_COMPILED_WITH_HOOKS),
            ]
            self._unwatch_steps = register_optimizer_step_pre_hook(
                self._guarded(self._on_step)
            ).remove
        self._optimizers.append(weakref.ref(optimizer))
        self._made.append(type(optimizer).__name__)
        self._judged.clear()

    def _on_forward(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling() or module in self._judged:
            return
        self._judged.add(module)
        optimizer = self._chosen_optimizer()
        if optimizer is None:
            return
        share = share_of(module, optimizer)
        if share > 0 and module not in _alive(self._modules):
            self._modules.append(weakref.ref(module))
            self._called.append(type(module).__name__)
        if self._model is not None:
            fits = share > 0 and _pick(_alive(self._modules), self._model) is module
        else:
            fits = share >= 0.5
        if fits and torch.is_grad_enabled():
            self.attach(module, optimizer)
            self._unwatch_steps()
            if self.profiler is not None and self.profiler.model is module:
                self.profiler.enter_forward(arguments)
        elif fits:
            self._judged.discard(module)  # evaluation: ask again at the next call

    def _on_step(self, optimizer: Optimizer, arguments: Any, keywords: Any) -> Any:
        self._stepped = True
        chosen = self._chosen_optimizer()
        self._picked_none = chosen is None
        if optimizer is not chosen:
            return None
        if not self._closure_seen:
            changed = after_closure(arguments, keywords, self._measure_first)
            if changed is not None:  # the forward may be yet to come, within the step
                self._closure_seen = True
                return changed
        model = self._owner(optimizer)
        self._ownerless = model is None
        if model is not None:
            self.attach(model, optimizer, first=1)
        return None

    def _measure_first(self) -> None:
        if self.profiler is not None:
            self.profiler.measure_if_due()

    def _chosen_optimizer(self) -> Optimizer | None:
        optimizers = _alive(self._optimizers)
        if self._optimizer is not None:
            return _pick(optimizers, self._optimizer)
        return max(optimizers, key=_size, default=None)

    def _owner(self, optimizer: Optimizer) -> nn.Module | None:
        """The model of an optimizer that steps, though no call gave it away."""
        if self._model is not None:
            return _pick(_alive(self._modules), self._model)
        modules = [m for m in gc.get_objects() if issubclass(type(m), nn.Module)]
        owners = [module for module in modules if share_of(module, optimizer) > 0]
        # The outermost of several with the same parameters has the most modules.
        return max(
            owners,
            key=lambda m: (share_of(m, optimizer), sum(1 for _ in m.modules())),
            default=None,
        )

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self._stop()
        self._say(reason)

    def _stop(self) -> None:
        """Remove every watch but that of steps, which torch may be iterating over."""
        while self._removers:
            self._removers.pop()()

    def _let_go(self) -> None:
        """Remove every watch."""
        atexit.unregister(self.finish)
        self._stop()
        self._unwatch_steps()

    def _several(self, optimizer: Optimizer) -> str:
        """Tell of other optimizers, where none was picked; empty where there are none."""
        others = [o for o in _alive(self._optimizers) if o is not optimizer]
        if not others or self._optimizer is not None:
            return ""
        return (
            f" There are {len(others) + 1} optimizers; pick another by --optimizer with a class "
            "name or index."
        )

    def _missing(self) -> str:
        made = ", ".join(self._made)
        if not made:
            return "the program made no torch.optim.Optimizer."
        if not self._stepped:
            return f"no optimizer made a step ({made})."
        if self._optimizer is not None and self._picked_none:
            return f"no optimizer is {self._optimizer!r}; there were {made}."
        if self._model is not None:
            called = ", ".join(dict.fromkeys(self._called)) or "none"
            return f"no model is {self._model!r}; with its parameters there were {called}."
        if self._ownerless:
            return f"no nn.Module holds the parameters of the optimizer ({made})."
        return f"the largest optimizer made no step ({made}): pick another by --optimizer."


def _watch_construction(listener: Callable[[Optimizer], None]) -> Callable[[], None]:
    original = Optimizer.__init__

    @functools.wraps(original)
    def watched(self: Optimizer, *arguments: Any, **keywords: Any) -> None:
        original(self, *arguments, **keywords)
        listener(self)

    def remove() -> None:
        if Optimizer.__init__ is watched:
            Optimizer.__init__ = original

    Optimizer.__init__ = watched
    return remove


def _ignore_warning(message: str) -> Callable[[], None]:
    warnings.filterwarnings("ignore", message=message)
    entry = warnings.filters[0]

    def remove() -> None:
        if entry in warnings.filters:
            list.remove(warnings.filters, entry)  # pyright: ignore[reportArgumentType]

    return remove


def _alive(references: Iterable["weakref.ref[T]"]) -> list[T]:
    return [thing for reference in references if (thing := reference()) is not None]


def _pick(things: list[T], which: str) -> T | None:
    """Pick by index, or the first of a class name."""
    if which.isdecimal():
        return things[int(which)] if int(which) < len(things) else None
    return next((thing for thing in things if type(thing).__name__ == which), None)


def _parameters(optimizer: Optimizer) -> dict[int, int]:
    """Sizes of the optimizer's parameters, by id."""
    return {id(p): p.numel() for group in optimizer.param_groups for p in group["params"]}


def _size(optimizer: Optimizer) -> int:
    return sum(_parameters(optimizer).values())


def share_of(module: nn.Module, optimizer: Optimizer) -> float:
    """The share of the optimizer's numbers that are parameters of the module."""
    sizes = _parameters(optimizer)
    owned = sum(sizes.get(id(parameter), 0) for parameter in module.parameters())
    return owned / max(sum(sizes.values()), 1)
