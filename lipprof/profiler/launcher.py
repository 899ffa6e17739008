"""Finding the training loop of a program that does not know of lipprof.

Three things are watched until the loop is found, and none of them afterwards: optimizers as they
are made (``Optimizer.__init__``), modules as they run and optimizers as they step (torch's global
hooks).  The first module to run that holds at least half of the largest optimizer's parameters is
profiled with it.  It is found in its first forward, so that iteration 0 can be measured.  Where
only the step gives the loop away (the model is not called, or calls are compiled), measuring starts
at the next scheduled iteration.  The profiler keeps model and optimizer alive till the end.
"""

import atexit
import functools
import gc
import os
import warnings
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from lipprof.curvature import LossClosure
from lipprof.errors import LipprofError
from lipprof.profiler.attach import Profiler
from lipprof.profiler.hooks import after_closure
from lipprof.profiler.probe import Probe
from lipprof.profiler.schedule import of_settings
from lipprof.settings import Settings

T = TypeVar("T")

_COMPILED_WITH_HOOKS = r"Using `torch.compile\(module\)` when there are global hooks"


class Launcher:
    """Attaches a profiler to the first training loop that this process runs.

    Args:
        path: the run file.
        settings: of the profiler.
        say: is given one line at a time for the user.
        model: class name or index (in the order of first calls) of the model; default: by size.
        optimizer: class name or index (in the order of creation); default: the largest.
        iteration: completed steps of a training that is resumed; its run file is appended to.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Settings,
        say: Callable[[str], None],
        *,
        model: str | None = None,
        optimizer: str | None = None,
        iteration: int = 0,
    ) -> None:
        self._iteration = iteration
        self.path, self.settings = path, settings
        self.profiler: Profiler | None = None
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
                self._give_up(f"nothing is profiled: {type(error).__name__}: {error}")

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
        share = _share(module, optimizer)
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
            if self.profiler is not None:
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
        owners = [module for module in modules if _share(module, optimizer) > 0]
        # The outermost of several with the same parameters has the most modules.
        return max(
            owners, key=lambda m: (_share(m, optimizer), sum(1 for _ in m.modules())), default=None
        )

    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        first: int = 0,
        loss: LossClosure | None = None,
    ) -> None:
        """Attach the profiler, and say so or why not.

        Args:
            model: the model.
            optimizer: its optimizer.
            first: steps before the first that may be measured.
            loss: see ``lipprof.attach``.
        """
        if _several_processes():
            self._give_up(
                "nothing is profiled: training runs in several processes (torch.distributed), "
                "which is not supported yet."
            )
            return
        scheduled, first = of_settings(self.settings), first + self._iteration
        try:
            self.profiler = Profiler(
                model,
                optimizer,
                self.path,
                Probe(loss),
                schedule=lambda iteration: iteration >= first and scheduled(iteration),
                settings=self.settings,
                resume=self._iteration > 0,
            )
            self.profiler.load_state_dict({"iteration": self._iteration})
        except (LipprofError, OSError) as error:
            self._give_up(f"nothing is profiled: {error}")
            return
        self._stop()
        self._say(self._announcement(self.profiler, late=first > self._iteration))

    def _announcement(self, profiler: Profiler, late: bool) -> str:
        n, share = profiler.view.n, _share(profiler.model, profiler.optimizer)
        text = (
            f"profiling {type(profiler.model).__name__} ({n:,} parameters) under "
            f"{type(profiler.optimizer).__name__} into {self.path}."
        )
        if share < 1:
            text += f" It holds {share:.0%} of the optimizer's parameters."
        others = [o for o in _alive(self._optimizers) if o is not profiler.optimizer]
        if others and self._optimizer is None:
            text += (
                f" There are {len(others) + 1} optimizers; pick another by --optimizer with a "
                "class name or index."
            )
        if late:
            text += " Its forward was not seen before the first step, which is not measured."
        return text

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self._stop()
        self._say(reason)

    def _stop(self) -> None:
        """Remove every watch but that of steps, which torch may be iterating over."""
        while self._removers:
            self._removers.pop()()

    def finish(self) -> None:
        """Stop watching, finish the run file and say what came of it; called at exit."""
        if os.getpid() != self._process:
            return
        atexit.unregister(self.finish)
        self._stop()
        self._unwatch_steps()
        if self.profiler is not None:
            self.profiler.close()
            self._say(self._conclusion(self.profiler))
        elif not self._given_up:
            self._say(f"nothing was profiled: {self._missing()}")

    def _conclusion(self, profiler: Profiler) -> str:
        if profiler.last is None:
            steps = f"{type(profiler.optimizer).__name__} made {profiler.iteration} steps"
            return f"{self.path} has no measurement: {steps}. See --every, --optimizer."
        return f"{self.path} is finished. Next: lipprof report {self.path}"

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


def _share(module: nn.Module, optimizer: Optimizer) -> float:
    """The share of the optimizer's numbers that are parameters of the module."""
    sizes = _parameters(optimizer)
    owned = sum(sizes.get(id(parameter), 0) for parameter in module.parameters())
    return owned / max(sum(sizes.values()), 1)


def _several_processes() -> bool:
    distributed = torch.distributed
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )
