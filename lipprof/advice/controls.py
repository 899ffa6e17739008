"""Controls: rules that look at nothing, which any claim of a rule has to beat.

* ``random``: a share of the units, drawn by name.
* ``static``: the units that are named.
* ``depth``: the share of the deepest, or the shallowest, units.
* ``first-then-second``: all first-order, from some iteration on second-order.
* ``inverted``: the opposite of another rule, which need not be a control.
"""

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from lipprof.advice.evidence import Evidence, Numbers
from lipprof.advice.ranks import positions
from lipprof.advice.rule import Ratio, Rule, is_count, is_number, is_share
from lipprof.errors import ConfigError


@dataclass(frozen=True)
class _Control(Rule):
    """A rule that needs no measurement."""

    @property
    def needs_lipschitz(self) -> bool:
        """It does not."""
        return False


@dataclass(frozen=True)
class Random(_Control):
    """First-order with probability ``share``, drawn for each unit from ``seed`` and its name."""

    share: float = 0.5
    seed: int = 0
    name: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        self._require(is_share(self.share), "share in [0, 1]")
        self._require(is_number(self.seed) and isinstance(self.seed, int), "a whole number as seed")

    def ratio(self, evidence: Evidence) -> Ratio:
        """All or nothing."""
        return _decided(np.array([self._draw(name) < self.share for name in evidence.names], bool))

    def cause(self, evidence: Evidence, index: int) -> str:
        """The draw and the share."""
        draw = self._draw(evidence.names[index])
        return f"drew {draw:.3f} {'<' if draw < self.share else '≥'} share = {self.share:g}"

    def _draw(self, name: str) -> float:
        digest = hashlib.blake2b(f"{self.seed}:{name}".encode(), digest_size=6).digest()
        return int.from_bytes(digest) / 2**48


@dataclass(frozen=True)
class Static(_Control):
    """First-order: units that a name or pattern in ``first`` fits (``blocks.0.*``)."""

    first: Sequence[str]
    name: ClassVar[str] = "static"

    def __post_init__(self) -> None:
        named = (self.first,) if isinstance(self.first, str) else self.first
        fits = isinstance(named, Sequence) and all(isinstance(name, str) for name in named)
        self._require(fits, "names or patterns in first")
        object.__setattr__(self, "first", tuple(named))

    def check(self, names: Sequence[str]) -> None:
        """Refuse names that no unit has.

        Args:
            names: of the units.

        Raises:
            ConfigError: a name or pattern fits none of them.
        """
        idle = [wanted for wanted in self.first if not any(_fits(name, wanted) for name in names)]
        if idle:
            near = difflib.get_close_matches(idle[0], names, n=3) or list(names)[:3]
            raise ConfigError(
                f"Rule {self.name} names {', '.join(map(repr, idle[:5]))}, which fits none of the "
                f"{len(names)} tensors; there are {', '.join(near)}."
            )

    def ratio(self, evidence: Evidence) -> Ratio:
        """All or nothing."""
        named = [any(_fits(name, wanted) for wanted in self.first) for name in evidence.names]
        return _decided(np.array(named, bool))

    def cause(self, evidence: Evidence, index: int) -> str:
        """The name or pattern that fits."""
        fitting = (wanted for wanted in self.first if _fits(evidence.names[index], wanted))
        wanted = next(fitting, None)
        return "not among those named" if wanted is None else f"named by {wanted!r}"


@dataclass(frozen=True)
class Depth(_Control):
    """First-order: the ``share`` of the units that is last (``deep``) or first in flat order."""

    share: float = 0.5
    side: Literal["deep", "shallow"] = "deep"
    of: Literal["units", "parameters"] = "units"
    name: ClassVar[str] = "depth"

    def __post_init__(self) -> None:
        self._require(is_share(self.share), "share in [0, 1]")
        self._require(self.side in {"deep", "shallow"}, "side deep or shallow")
        self._require(self.of in {"parameters", "units"}, "of units or parameters")

    def ratio(self, evidence: Evidence) -> Ratio:
        """All or nothing."""
        return _decided(self._positions(evidence) <= self.share)

    def cause(self, evidence: Evidence, index: int) -> str:
        """The position and the share."""
        position = self._positions(evidence)[index]
        relation = "≤" if position <= self.share else ">"
        end = "deepest" if self.side == "deep" else "shallowest"
        return f"{position:.0%} {relation} {self.share:.0%} of the {self.of} from the {end}"

    def _positions(self, evidence: Evidence) -> Numbers:
        count = len(evidence.names)
        depth = np.arange(count, dtype=np.float64)
        depth = depth if self.side == "deep" else -depth
        weights = evidence.numel if self.of == "parameters" else np.ones(count)
        return positions(depth, depth, weights)[0]


@dataclass(frozen=True)
class FirstThenSecond(_Control):
    """All first-order before iteration ``until``, all second-order from then on."""

    until: int
    name: ClassVar[str] = "first-then-second"

    def __post_init__(self) -> None:
        self._require(is_count(self.until), "a whole number >= 0 as until")

    @property
    def moments(self) -> tuple[int, ...]:
        """The start, and the iteration of the change."""
        return (0, self.until)

    def ratio(self, evidence: Evidence) -> Ratio:
        """All or nothing."""
        return _decided(np.full(len(evidence.names), evidence.iteration < self.until))

    def cause(self, evidence: Evidence, index: int) -> str:  # noqa: ARG002
        """Both iterations."""
        relation = "<" if evidence.iteration < self.until else "≥"
        return f"iteration {evidence.iteration} {relation} {self.until}"


@dataclass(frozen=True)
class Inverted(Rule):
    """Second-order where another rule says first-order, and the reverse; as steady as that one."""

    rule: Rule
    name: ClassVar[str] = "inverted"

    def __post_init__(self) -> None:
        self._require(isinstance(self.rule, Rule), "a rule, such as Inverted(NewtonSafe())")

    @property
    def needs_lipschitz(self) -> bool:
        """As the other."""
        return self.rule.needs_lipschitz

    @property
    def needs_candidates(self) -> bool:
        """As the other."""
        return self.rule.needs_candidates

    @property
    def moments(self) -> tuple[int, ...]:
        """As the other's."""
        return self.rule.moments

    def check(self, names: Sequence[str]) -> None:
        """As the other.

        Args:
            names: of the units.
        """
        self.rule.check(names)

    def ratio(self, evidence: Evidence) -> Ratio:
        """The reciprocal; where the other is exactly 1, which is first-order, just below 1."""
        low, high = self.rule.ratio(evidence)
        return Ratio(_reciprocal(high), _reciprocal(low))

    def cause(self, evidence: Evidence, index: int) -> str:
        """The other's."""
        return f"inverted: {self.rule.cause(evidence, index)}"

    def missing(self, evidence: Evidence, index: int) -> str:
        """The other's."""
        return self.rule.missing(evidence, index)

    @property
    def doubt(self) -> str:
        """The other's."""
        return self.rule.doubt

    def margin(self, evidence: Evidence, index: int) -> str:
        """The other's."""
        return self.rule.margin(evidence, index)


def _decided(first: NDArray[np.bool_]) -> Ratio:
    """A ratio that leaves nothing open."""
    certain = np.where(first, np.inf, 0.0)
    return Ratio(certain, certain)


def _reciprocal(ratio: Numbers) -> Numbers:
    with np.errstate(divide="ignore"):
        return np.where(ratio == 1, np.nextafter(1.0, 0.0), 1 / ratio)


def _fits(name: str, wanted: str) -> bool:
    return name == wanted or fnmatchcase(name, wanted)
