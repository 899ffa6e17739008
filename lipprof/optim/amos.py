"""AMOS: two optimizers behind the face of one, units moving between them live (Alg. 2).

1. One face.  ``param_groups`` are the user's and never change with the assignment, so schedulers,
   GradScaler and checkpoints see an ordinary optimizer.  They carry the first optimizer's
   hyperparameters; a change of ``lr`` there scales both learning rates (see ``groups``).
2. What switches together is a unit: a tensor, a module, or a chunk of consecutive entries.
   ``assignment`` has the two optimizers and who may switch, ``handles`` what they hold.
3. The choice comes from ``follow(recommendation)``, or without it from the diagonal that the
   second optimizer is fed (``observe_...``; see ``own_advice``), or from a rule that needs none
   (``lipprof.advice.controls``).  With none of these, nothing ever moves.
4. What becomes of state at a switch is the subject of ``handover``.
5. A step happens as a whole or not at all, as far as that is affordable; see ``guard``.

Cost per step: the two optimizers' own; a tensor away from a first optimizer that is kept warm
costs its step too.  On a CPU one pass over the gradients comes on top, on accelerators nothing: no
host synchronisation besides theirs.  Hooks registered on AMOS fire once a step; torch's global
optimizer hooks see the inner steps as well.
With several processes, feed every one the same diagonal, as gradients are: decisions are local.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lipprof.advice import Choice, Recommendation, Rule, rule_of
from lipprof.curvature import Partition, Units, check_units, hutchinson_sample
from lipprof.errors import ConfigError
from lipprof.optim.arm import Arm, Factory, Group, check_choice, check_factory
from lipprof.optim.assignment import SIDES, Assignment
from lipprof.optim.estimate import Aggregate, EstimateSettings, TakesCurvature
from lipprof.optim.groups import GroupLink, Members, given_in, members
from lipprof.optim.guard import Guard, Rollback
from lipprof.optim.handles import Handle
from lipprof.optim.own_advice import OwnAdvice
from lipprof.optim.switches import Switch, from_plain, plain


class AMOS(Optimizer):
    """Runs each tensor on the first-order or the second-order optimizer; see the module.

    Args:
        params: ``model.named_parameters()``, plain parameters, or groups.  Names are what
            ``follow`` matches by.
        first: builds the first-order optimizer from parameters, as ``partial(SGD, lr=1e-2)``.
            Must take every tensor.
        second: builds the second-order optimizer; tensors it refuses stay on the first.
        units: what switches together: ``"tensor"``, ``"module"`` (the tensors it owns itself), or
            the number of entries of a chunk.  Chunks are cut across the borders of tensors in the
            order of ``params``; where that is not the model's, as with several groups, give
            ``lipprof.Partition.of(model.named_parameters(), entries)``.  What is cut goes only to
            optimizers that treat every entry alone; see ``lipprof.optim.register_elementwise``.
        matrices: hand tensors of more than two dimensions to both optimizers as matrices (first
            dimension, all others), as Muon needs for convolutions.
        eligible: ``(name, tensor) -> bool``; False keeps a tensor on the first side.
        start: the side on which tensors that may switch begin.
        idle_state: ``warm`` or ``restart``, see ``handover``.
        check_finite: refuse a step with a gradient that is not finite; see ``guard``.
        rollback: when an optimizer that raises leaves all as before the step; see there.
        rule: by which AMOS decides alone, as all that follows; ``follow`` and an attached profiler
            have their own.  See ``lipprof.advice.Advisor``.
        threshold: see there.
        hysteresis: see there.
        dwell: see there.
        warmup: see there.
        aggregate: trace, mean (Fig. 1) or max (App. K); see ``lipprof.lipschitz.tensors``.
        alpha: of the moving average of L; see ``lipprof.lipschitz.DriftEstimator``.
        epsilon: see there.
        bias_correction: see there.
        distance_floor: see there.

    Raises:
        ConfigError: an argument out of range, or an optimizer that cannot take its tensors.
    """

    def __init__(
        self,
        params: Any,
        first: Factory,
        second: Factory,
        *,
        units: Units | Partition = "tensor",
        matrices: bool = False,
        eligible: Callable[[str, Tensor], bool] | None = None,
        start: Literal["first", "second"] = "first",
        idle_state: Literal["warm", "restart"] = "warm",
        check_finite: bool | None = None,
        rollback: Rollback = "changes",
        rule: Rule | str = "newton-safe",
        threshold: float = 2e-10,
        hysteresis: float = 2.0,
        dwell: int = 2,
        warmup: int = 0,
        aggregate: Aggregate = "trace",
        alpha: float = 0.9,
        epsilon: float = 1e-12,
        bias_correction: bool = True,
        distance_floor: float = 0.1,
    ) -> None:
        if not isinstance(units, Partition):
            check_units(units)
        check_factory("first", first)
        check_factory("second", second)
        check_choice("idle_state", idle_state, ("warm", "restart"))
        _check_start(start, warmup)
        settings = EstimateSettings(
            rule=rule_of(rule, threshold),
            threshold=threshold,
            hysteresis=hysteresis,
            dwell=dwell,
            warmup=warmup,
            aggregate=aggregate,
            alpha=alpha,
            epsilon=epsilon,
            bias_correction=bias_correction,
            distance_floor=distance_floor,
        )
        self._own = OwnAdvice(settings)
        self._guard = Guard(check_finite, rollback)
        self._sides: Assignment | None = None
        self._given: list[Group] = []  # what the user set, per group
        super().__init__(params, {})
        if units == "module" and "param_names" not in self.param_groups[0]:
            raise ConfigError("Modules are known by names. Pass model.named_parameters().")
        self._sides = Assignment(
            (first, second),
            [self._members(index) for index in range(len(self.param_groups))],
            units=units,
            matrices=matrices,
            eligible=eligible,
            start=Choice.FIRST if start == "first" else Choice.SECOND,
            warm=idle_state == "warm",
        )
        self.defaults = dict(self._sides.first.optimizer.defaults)
        self._links = [
            GroupLink(group, self._given[index], index, self._arms)
            for index, group in enumerate(self.param_groups)
        ]
        self._iteration = 0
        self._own.restart(self._sides.units, 0)
        self.switches: list[Switch] = []

    def add_param_group(self, param_group: Group) -> None:
        """Take in one more group; AMOS's own estimate of L starts anew with it."""
        given = given_in(param_group)
        super().add_param_group(param_group)
        self._given.append(given)
        if self._sides is None:
            return
        index = len(self.param_groups) - 1
        try:
            self._sides.add_group(self._members(index))
        except ConfigError:
            self.param_groups.pop()
            self._given.pop()
            raise
        self._links.append(GroupLink(self.param_groups[index], given, index, self._arms))
        self._own.restart(self._sides.units, self._iteration)

    def _members(self, index: int) -> Members:
        offset = sum(len(group["params"]) for group in self.param_groups[:index])
        return members(self.param_groups[index], self._given[index], offset=offset)

    @property
    def _assignment(self) -> Assignment:
        assert self._sides is not None
        return self._sides

    @property
    def _arms(self) -> tuple[Arm, Arm]:
        return self._assignment.first, self._assignment.second

    @property
    def optimizers(self) -> tuple[Optimizer, Optimizer]:
        """The first and the second optimizer, each over the tensors that it holds now."""
        return self._arms[0].optimizer, self._arms[1].optimizer

    @property
    def rule(self) -> Rule:
        """By which AMOS decides alone."""
        return self._own.rule

    @property
    def units(self) -> Units:
        """What switches together: ``"tensor"``, ``"module"`` or the entries of a chunk."""
        return self._assignment.kind

    @property
    def assigned(self) -> dict[str, Choice]:
        """The side of every unit now, by name."""
        return {unit.name: unit.choice for unit in self._assignment.units}

    def plan(self) -> dict[str, str]:
        """Say of every unit, by name, whether it may switch and what stays first-order and why."""
        return {unit.name: unit.plan for unit in self._assignment.units}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step with both optimizers, each on its tensors.

        Args:
            closure: re-evaluates the loss and its gradient; called once.

        Returns:
            The loss of the closure, if there is one.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        self._guard.check(self.param_groups)
        with self._assignment.gradients_lent():
            advice = self._own.advise(self._assignment.units, self._iteration)
            if advice is not None:
                self._apply(advice)
            self.push_hyperparameters()
            self._guard.step(self._arms)
        self._iteration += 1
        return loss

    def push_hyperparameters(self) -> None:
        """Tell both optimizers what has changed in ``param_groups``, as a step does first."""
        for link, group in zip(self._links, self.param_groups, strict=True):
            link.push(group, self._arms)

    def follow(self, recommendation: Recommendation) -> list[Switch]:
        """Apply a recommendation; from now on AMOS's own estimate is off.

        A unit without an answer stays where it is, one that may not switch stays first-order.

        Args:
            recommendation: its names are those that AMOS was built with, in any order.

        Returns:
            What changed; also appended to ``switches`` and logged.

        Raises:
            ConfigError: the names do not match.
        """  # noqa: DOC502 - raised by the check
        self.require_units(recommendation.names)
        self._own.silence()
        return self._apply(recommendation)

    def await_recommendations(self) -> None:
        """Decide nothing alone from now on: a profiler is going to recommend."""
        self._own.silence()

    def require_units(self, names: Sequence[str]) -> None:
        """Check that recommendations for units of these names can be followed.

        Raises:
            ConfigError: they are not those of AMOS.
        """  # noqa: DOC502 - raised by the assignment
        self._assignment.require(names, named="param_names" in self.param_groups[0])

    def _apply(self, recommendation: Recommendation) -> list[Switch]:
        switches = self._assignment.apply(recommendation)
        self.switches += switches
        return switches

    @property
    def curvature_due(self) -> bool:
        """Whether the second optimizer wants a new diagonal at the step to come."""
        every = getattr(self._assignment.second.optimizer, "update_every", None)
        return every is not None and self._iteration % every == 0

    def observe_curvature(self, diagonal: Mapping[Tensor, Tensor]) -> None:
        """Feed the second optimizer a diagonal; see ``Sophia.observe_curvature``.

        Entries of tensors that never leave the first side are ignored, and so is a diagonal lent to
        a second optimizer that takes none.
        """
        if isinstance(self._arms[1].optimizer, TakesCurvature):
            self._observe_curvature(diagonal)

    def _observe_curvature(self, diagonal: Mapping[Tensor, Tensor]) -> None:
        known = [handle for handle in self._switchable if handle.parameter in diagonal]
        own = {handle.tensor: handle.of(diagonal[handle.parameter]) for handle in known}
        self._observe("observe_curvature", set(own), own)

    def observe_sampled_gradient(self, batch_size: int) -> None:
        """Feed the second optimizer batch_size · g²; see ``Sophia.observe_sampled_gradient``."""
        seen = {h.tensor for h in self._switchable if h.parameter.grad is not None}
        with self._assignment.gradients_lent():
            self._observe("observe_sampled_gradient", seen, batch_size)

    def observe_hutchinson(self, loss: Tensor, generator: torch.Generator | None = None) -> None:
        """Feed the second optimizer z ⊙ Hz of a loss; see ``Sophia.observe_hutchinson``."""
        if not any(handle.is_view for handle in self._switchable):
            seen = {handle.tensor for handle in self._switchable}
            self._observe("observe_hutchinson", seen, loss, generator)
            return
        expect = getattr(self._arms[1].optimizer, "expect_estimator", None)
        if expect is not None:
            expect("hutchinson", "observe_sampled_gradient")
        parameters = list(dict.fromkeys(handle.parameter for handle in self._switchable))
        estimate = hutchinson_sample(loss, parameters, generator=generator)
        self._observe_curvature(dict(zip(parameters, estimate, strict=True)))

    def _observe(self, method: str, seen: set[Tensor], *args: Any) -> None:
        arm = self._assignment.second
        if not isinstance(arm.optimizer, TakesCurvature):
            raise ConfigError(
                f"The second optimizer, {type(arm.optimizer).__name__}, takes no curvature. "
                "Use Sophia, or move tensors with follow()."
            )
        update = partial(getattr(arm.optimizer, method), *args)
        with arm.whole():
            self._own.observe(self._assignment.units, seen, arm.optimizer.diagonal, update)

    @property
    def _switchable(self) -> list[Handle]:
        return [handle for unit in self._assignment.units for handle in unit.movable]

    @property
    def state(self) -> defaultdict[Tensor, dict[str, Any]]:
        """The state of both optimizers: ``state[p]["first"]`` and ``state[p]["second"]``.

        Of a parameter that is cut, by the range of entries: ``state[p]["first"]["0:4096"]``.
        """
        return self._assignment.state()

    @state.setter
    def state(self, merged: Mapping[Tensor, dict[str, Any]]) -> None:
        if self._sides is not None:  # torch's constructor comes before there are optimizers
            self._sides.load_state(merged)

    def __getstate__(self) -> dict[str, Any]:
        """Return all but hooks and the ``step`` that a scheduler has wrapped, as torch does."""
        left_out = ("step", *(name for name in vars(self) if name.startswith("_optimizer_")))
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rest = dict(state)
        merged = rest.pop("state", None)  # there when a state_dict is loaded
        super().__setstate__(rest)
        if merged is not None:
            self.state = merged  # pyright: ignore[reportIncompatibleVariableOverride]

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly: plain types and tensors only."""
        return super().state_dict() | {
            "amos": {
                "iteration": self._iteration,
                "assigned": {name: int(choice) for name, choice in self.assigned.items()},
                "first": self._arms[0].hyperparameters(),
                "second": self._arms[1].hyperparameters(),
                "pushed": [dict(link.pushed) for link in self._links],
                "switches": plain(self.switches),
                **self._own.state_dict(),
            }
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, into an AMOS of the same optimizers.

        Raises:
            ConfigError: the state is another optimizer's, or of other units.
        """
        if "amos" not in state_dict:
            raise ConfigError("This state_dict is not of AMOS: it has no entry 'amos'.")
        own = state_dict["amos"]
        if differing := own["assigned"].keys() ^ self.assigned.keys():
            raise ConfigError(
                f"This state_dict is of AMOS with other units, such as {sorted(differing)[0]}. "
                "Build it with the same units= and the same parameters."
            )
        super().load_state_dict(state_dict)
        self._iteration = own["iteration"]
        self.switches = from_plain(own["switches"])
        for unit in self._assignment.units:
            unit.choice = Choice.FIRST if unit.bound else Choice(own["assigned"][unit.name])
        for side, arm in zip(SIDES, self._arms, strict=True):
            arm.load_hyperparameters(own[side])
        self._assignment.place()
        known = zip(self._links, self.param_groups, own["pushed"], strict=True)
        for link, group, pushed in known:
            link.mark(group, pushed)
        self._own.load_state_dict(own, self._assignment.units)


def _check_start(start: str, warmup: int) -> None:
    check_choice("start", start, SIDES)
    if warmup and start == "second":
        raise ConfigError(
            f"Got {warmup=} and start='second': a warm-up keeps tensors where they start, and "
            "that should be the first side."
        )
