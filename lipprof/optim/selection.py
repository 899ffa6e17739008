"""Which eigenspaces take the second-order step: a rule's answer for each, by its own L, λ and γ.

The eigenspaces are the units (the paper's footnote 2): the second-order step inside those that the
rule sends to the second-order side, the base optimizer in the others and in the complement.  Each
observation is answered by itself, without hysteresis: eigenspaces are counted by falling λ, and the
n-th of one observation need not be the n-th of the one before.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lipprof.advice import Advisor, Choice, Evidence, Recommendation, Rule
from lipprof.lipschitz import Eigenspaces, newton_threshold
from lipprof.optim.switches import Switch, announced, from_plain, plain

DEFAULT_THRESHOLD = 2e-10
"""L_thresh of the paper's App. K."""


class EigenspaceSelection:
    """Answers for every observation of eigenspaces, and remembers the last answer.

    Args:
        rule: see ``lipprof.advice.Advisor``; None: every eigenspace is second-order.
        threshold: see there.

    Raises:
        ConfigError: unknown rule, or an option out of range.
    """  # noqa: DOC502 - raised by the advisor

    def __init__(self, rule: Rule | str | None, threshold: float) -> None:
        checked = Advisor([], rule=rule or "newton-safe", threshold=threshold).rule
        self.rule = None if rule is None else checked
        self.assigned: dict[str, Choice] = {}
        self.switches: list[Switch] = []
        self.recommendation: Recommendation | None = None  # of the newest observation, once asked
        self._selected: Bool[Tensor, " k"] | None = None

    def renew(self) -> None:
        """Ask anew at the next step: other eigenspaces were observed."""
        self._selected = self.recommendation = None

    def selected(
        self, eigenspaces: Eigenspaces, slope: Float[Tensor, " k"], iteration: int
    ) -> Bool[Tensor, " k"]:
        """Say which eigenspaces are second-order; the first answer after ``renew`` stays.

        Args:
            eigenspaces: those in use.
            slope: γ = |g·v| of the gradient about to be stepped on, loss/param.
            iteration: completed steps.

        Returns:
            True for those that are, on the device of ``slope``; one synchronisation per answer.
        """
        if self._selected is None:
            self.recommendation = self._advise(eigenspaces, slope, iteration)
            self._take(self.recommendation)
            second = [choice is Choice.SECOND for choice in self.assigned.values()]
            self._selected = torch.tensor(second, device=slope.device)
        return self._selected

    def _advise(
        self, spaces: Eigenspaces, slope: Float[Tensor, " k"], iteration: int
    ) -> Recommendation:
        slope = slope.to(spaces.values)
        limit = newton_threshold(slope=slope, curvature=spaces.values)
        numbers = torch.stack([spaces.lipschitz, limit, spaces.values, slope]).cpu().numpy()
        names = [f"eigenspace {i + 1}" for i in range(len(slope))]
        evidence = Evidence.exact(
            iteration,
            names,
            [1] * len(names),
            lipschitz=numbers[0],
            threshold=numbers[1],
            curvature=numbers[2],
            slope=numbers[3],
        )
        assert self.rule is not None
        return Advisor(names, rule=self.rule).advise(evidence)

    def _take(self, recommendation: Recommendation) -> None:
        side = {switch.name: switch.choice for switch in self.switches}
        self.assigned = {}
        for index, name in enumerate(recommendation.names):
            choice = Choice(int(recommendation.choice[index]))
            self.assigned[name] = choice
            if choice not in {Choice.NONE, side.get(name, Choice.FIRST)}:
                self.switches.append(announced(recommendation, index))

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly."""
        return {
            "selected": self._selected,
            "assigned": {name: int(choice) for name, choice in self.assigned.items()},
            "switches": plain(self.switches),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._selected = state["selected"]
        self.assigned = {name: Choice(choice) for name, choice in state["assigned"].items()}
        self.switches = from_plain(state["switches"])
