"""How AMOS decides alone: from the diagonal that its second optimizer is fed, or by a control.

Holds what ``estimate`` needs from one observation to the next.  Once a recommendation from
elsewhere is followed, nothing is decided here any more.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lipprof.advice import Recommendation, Rule
from lipprof.errors import ConfigError
from lipprof.optim.assignment import Unit, movable_sizes
from lipprof.optim.estimate import Diagonal, DiagonalEstimate, EstimateSettings

logger = logging.getLogger("lipprof")


class OwnAdvice:
    """Recommends for the units of an AMOS.

    Args:
        settings: of the rule and of its evidence.
    """

    def __init__(self, settings: EstimateSettings) -> None:
        self._settings = settings
        self._estimate: DiagonalEstimate | None = None
        self._moments = settings.moments
        self._silent = False
        self._warned = False

    @property
    def rule(self) -> Rule:
        """By which it decides."""
        return self._settings.rule

    def silence(self) -> None:
        """Decide no more: a recommendation from elsewhere is followed."""
        self._silent, self._estimate = True, None

    def restart(self, units: Sequence[Unit], iteration: int) -> None:
        """Start anew with these units.

        Raises:
            ConfigError: the rule does not fit them.
        """  # noqa: DOC502 - raised by the advisor
        self._build(units)
        self._estimate = None
        if self._moments:
            self._moments.add(iteration)

    def observe(
        self,
        units: Sequence[Unit],
        seen: set[Tensor],
        diagonal: Callable[[], Diagonal],
        update: Callable[[], None],
    ) -> None:
        """Let the second optimizer take in curvature, and see what that changes.

        Args:
            units: of AMOS.
            seen: the tensors that are observed.
            diagonal: of the second optimizer.
            update: has it take in the curvature.
        """
        if self._silent or self.rule.fixed:
            update()
            return
        before = diagonal()
        update()
        self._estimate = self._estimate or self._build(units)
        self._estimate.observe(before, diagonal(), seen)

    def advise(self, units: Sequence[Unit], iteration: int) -> Recommendation | None:
        """Recommend, where there is something new to recommend from.

        Args:
            units: of AMOS, with their gradients at hand.
            iteration: completed optimizer steps.

        Returns:
            The recommendation; None: all stays as it is.

        Raises:
            ConfigError: the rule needs what only a profiler measures.
        """
        if self._silent:
            return None
        if self.rule.needs_candidates:
            raise ConfigError(
                f"Rule {self.rule} compares the next steps of both optimizers on a probe, and AMOS "
                "alone has none. Call lipprof.attach(model, optimizer, loss=..., "
                f"rule={str(self.rule)!r}), or choose another rule."
            )
        if iteration in self._moments:
            return self._settings.advise(iteration, *movable_sizes(units))
        if self._estimate is None or not self._estimate.ready:
            return None
        recommendation = self._estimate.advise(iteration)
        if self._estimate.collapsing(recommendation) and not self._warned:
            self._warned = True
            logger.warning(
                f"iteration {iteration}: nearly all parameters are first-order and hardly move "
                "any more, and that alone makes L rise. Raise the first optimizer's lr or "
                "distance_floor."
            )
        return recommendation

    def _build(self, units: Sequence[Unit]) -> DiagonalEstimate:
        names, numel = movable_sizes(units)
        tensors = [handle.tensor for unit in units for handle in unit.movable]
        return self._settings.build(names, tensors, numel)

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly."""
        return {
            "followed": self._silent,
            "warned": self._warned,
            "estimate": None if self._estimate is None else self._estimate.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], units: Sequence[Unit]) -> None:
        """Restore what ``state_dict`` returned, for the same units."""
        self._silent, self._warned, self._estimate = state["followed"], state["warned"], None
        if state["estimate"] is not None:
            self._estimate = self._build(units)
            self._estimate.load_state_dict(state["estimate"])
