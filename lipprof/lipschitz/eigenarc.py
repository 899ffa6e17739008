"""EigenARC: Hessian-Lipschitz parameters by trust-region trials of ELMO's step (Alg. 3).

With x*ᵢ and Mᵢ of the present Lᵢ (eq. 3, 7) and

    ρ = [f(θ) − f(θ + Σ x*ᵢ vᵢ)] / [−Σ Mᵢ(x*ᵢ)]

1. ρ > η₂: every L was too conservative, L ← γ₂ L.
2. ρ < η₁: too liberal.  L ← γ₁ L for all, until ρ ≥ η₁; then, pair by pair, Lᵢ ← Lᵢ/γ₁ as long as
   ρ ≥ η₁ holds, and the last lowering is undone.
3. Otherwise L stays.

(Line 8 of the paper prints ">" where "<" is meant.)

What the text leaves open, and how it is read here:

* No Lᵢ is lowered more often than all were raised.  The loop of the paper has no end where ρ does
  not depend on Lᵢ (λᵢ ≫ (2Lᵢγᵢ)^½, or next to no slope); under this bound a pair that was not to
  blame comes back to where it was, and what lowers it further is case 1.
* The undone lowering is the one that broke ρ ≥ η₁; where the bound ends the loop there is none.
* Case 1 stops where L would fall below ε · 3λ²/γ (eq. 8), ε the rounding of the loss: there the
  cubic term is beyond what a loss can show, and L would sink towards zero without a reason.
* After ``max_raises`` raises in vain, or where they end in the rounding of the loss, the step along
  all pairs together has told nothing of any one of them.  The raises are taken back, and case 2 is
  gone through for each pair alone, by its own xᵢ vᵢ and Mᵢ.  What is then raised in vain stays
  raised, for the next measurement to go on from: a lower bound, and marked as such.  (Read to the
  letter, the paper keeps every L raised: one pair whose L is more than γ₁¹¹ too small raises all
  others by γ₁¹¹ a measurement.  Measured on ResNet18: L⁺ of 10¹⁹.)
* The paper numbers eigenspaces by rank.  Here L moves with its eigenvector (``follow``), and a pair
  without a predecessor inherits the L of its place, as by rank, and not L_0: in networks L is often
  far more than γ₁¹¹ away from 1.

The greedy loop of case 2 goes in the order of the pairs, so *which* Lᵢ stays raised may depend on
it; ρ, the number of raises and case 1 do not.

What L means: an L under which the loss fell as promised, up to a factor of γ₁ and to the slack
between η₁ and η₂.  A pair whose cubic term hardly matters at x* (far below eq. 8's threshold)
passes under any L, which then falls by γ₂ a measurement.

Cost: one loss evaluation where nothing fails, else at most 1 + r + (r + 1) k of them for k pairs,
r = ``max_raises``; evaluations at the same point are made once.
"""

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lipprof.errors import ConfigError, NonfiniteError, ShapeError
from lipprof.lipschitz.acceptance import (
    LARGEST,
    REFUSED,
    SMALLEST,
    AcceptanceRule,
    Trial,
    Verdict,
)
from lipprof.lipschitz.cubic import elmo_step, newton_threshold, pessimistic_model

LossAlong = Callable[[Float[Tensor, " k"]], float]


class EigenArcStatus(enum.Enum):
    """How a measurement ended, for all pairs or for one; the value says what L is worth."""

    LOWERED = "the models were too careful: L was lowered once, where that counts, and not tried"
    KEPT = "nothing speaks against L: it stays"
    RAISED = "the models promised too much: L was raised until the loss fell as promised"
    GAVE_UP = "not even the last raise made the loss fall as promised: L is a lower bound only"
    UNRESOLVED = "the descent is lost in the rounding of the loss: L was not adapted any further"
    IDLE = "no pair has a step to try: L stays"


@dataclass(frozen=True, slots=True, kw_only=True)
class EigenArcResult:
    """L of k pairs after one measurement, and what it took."""

    lipschitz: Float[Tensor, " k"]  # loss/param³, float64, on the CPU; NaN: the pair was left out
    tested: Bool[Tensor, " k"]  # x* > 0: the others say nothing, and have the L they had
    ratio: float  # ρ at the L of before, which decided the case; NaN: no descent was predicted
    evaluations: int  # of the loss, besides f(θ)
    raises: int  # of all L together
    status: EigenArcStatus  # of the step along all pairs
    outcomes: tuple[EigenArcStatus, ...]  # of each pair


_Adapted = tuple[EigenArcStatus, list[EigenArcStatus], int, Float[Tensor, " k"]]
"""Status, outcomes, number of raises and L."""


class EigenARC:
    """Estimates L of k eigenspaces, measurement after measurement.

    Example::

        along = DisplacedLoss(loss, view)
        result = estimator.update(
            lambda x: along(x.to(vectors) @ vectors),
            loss=along(torch.zeros(view.n)), slope=slope, curvature=values,
            rounding=along.rounding,
        )

    Args:
        eta1: η₁, below it L is raised.
        eta2: η₂, above it L is lowered.
        gamma1: γ₁ > 1, the factor to raise by.
        gamma2: γ₂ < 1, the factor to lower by.
        initial: L_0, at the first measurement, loss/param³.
        max_raises: of one measurement.  Defaults: App. J.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        *,
        eta1: float = 0.1,
        eta2: float = 0.9,
        gamma1: float = 2.0,
        gamma2: float = 0.5,
        initial: float = 1.0,
        max_raises: int = 11,
    ) -> None:
        if not 0 < initial < math.inf or not max_raises >= 1:
            raise ConfigError(
                f"Got {initial=}, {max_raises=}: expected a positive L and at least one raise."
            )
        self.rule = AcceptanceRule(eta1=eta1, eta2=eta2, gamma1=gamma1, gamma2=gamma2)
        self.initial = initial
        self.max_raises = max_raises
        self._lipschitz: Tensor | None = None

    def update(
        self,
        loss_along: LossAlong,
        *,
        loss: float,
        slope: Float[Tensor, " k"],
        curvature: Float[Tensor, " k"],
        rounding: float = torch.finfo(torch.float32).eps,
    ) -> EigenArcResult:
        """Try ELMO's step and adapt L.

        Args:
            loss_along: f(θ + Σ xᵢ vᵢ) for x (k,), float64 on the CPU, with vᵢ oriented so that
                g·vᵢ ≤ 0; may be NaN or infinite, which refuses the step.
            loss: f(θ), evaluated as ``loss_along`` does.
            slope: γ = |g·v| ≥ 0.  Unit: loss/param.
            curvature: λ.  Unit: loss/param².  A pair with a NaN in either is left out.
            rounding: ε, relative error of a loss evaluation: eps of the coarsest dtype that the
                loss computes in and θ is kept in.

        Returns:
            L and how it came about.

        Raises:
            NonfiniteError: ``loss`` is NaN or infinite.
            ShapeError: the number of pairs is not that of the last measurement.
        """
        start = self._present(len(slope))
        if not math.isfinite(loss):
            raise NonfiniteError(f"The loss is {loss}: there is no descent to measure from it.")
        trials = _Trials(loss_along, self.rule, loss, slope, curvature, rounding)
        first = trials.at(start)
        tested = trials.step(start) > 0
        status, outcomes, raises, lipschitz = self._adapted(trials, first, start, tested)
        self._lipschitz = lipschitz.clamp(SMALLEST, LARGEST)
        return EigenArcResult(
            lipschitz=torch.where(trials.known, self._lipschitz, torch.nan),
            tested=tested,
            ratio=first.ratio,
            evaluations=trials.evaluations,
            raises=raises,
            status=status,
            outcomes=tuple(outcomes),
        )

    def follow(self, source: Int[Tensor, " k"]) -> None:
        """Reorder L after a matching: entry i continues entry ``source[i]``.

        Args:
            source: indices into the present entries, and as many; −1: entry i stays where it is.
        """
        if self._lipschitz is None:
            return
        index = source.cpu()
        self._lipschitz = torch.where(
            index >= 0, self._lipschitz[index.clamp(min=0)], self._lipschitz
        )

    def state_dict(self) -> dict[str, object]:
        """Return what ``load_state_dict`` needs to go on exactly."""
        return {"lipschitz": self._lipschitz}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore what ``state_dict`` returned, from whatever device."""
        known = state["lipschitz"]
        self._lipschitz = known.cpu() if isinstance(known, Tensor) else None

    def _present(self, pairs: int) -> Float[Tensor, " k"]:
        if self._lipschitz is None:
            return torch.full((pairs,), self.initial, dtype=torch.float64)
        if len(self._lipschitz) != pairs:
            raise ShapeError(
                f"Got {pairs} pairs after {len(self._lipschitz)}. Call follow() with their "
                "matching first."
            )
        return self._lipschitz

    def _adapted(
        self,
        trials: "_Trials",
        first: Trial,
        start: Float[Tensor, " k"],
        tested: Bool[Tensor, " k"],
    ) -> _Adapted:
        if not tested.any():
            return _adapted(EigenArcStatus.IDLE, tested, start)
        match first.verdict:
            case Verdict.UNRESOLVED:
                return _adapted(EigenArcStatus.UNRESOLVED, tested, start)
            case Verdict.SUCCESSFUL:
                return _adapted(EigenArcStatus.KEPT, tested, start)
            case Verdict.VERY_SUCCESSFUL:
                lowered = self.rule.factor(first.verdict) * start
                useful = tested & (lowered >= trials.floor)
                return _adapted(EigenArcStatus.LOWERED, tested, torch.where(useful, lowered, start))
            case Verdict.UNSUCCESSFUL:
                return self._raised(trials, start, tested)

    def _raised(
        self, trials: "_Trials", start: Float[Tensor, " k"], tested: Bool[Tensor, " k"]
    ) -> _Adapted:
        """Case 2: all together, and where that is in vain, each by itself."""
        raises, together = self._raise(trials, start, tested)
        if together.holds:
            powers = self._lowered_singly(trials, start, raises * tested.double())
            verdicts = [together] * len(start)
        else:
            singles = torch.eye(len(start), dtype=torch.bool) & tested
            found = [self._raise(trials, start, one) for one in singles]
            powers = torch.tensor([count for count, _ in found], dtype=torch.float64)
            verdicts = [verdict for _, verdict in found]
        outcomes = [
            _outcome(verdict, raised=power > 0) if known else EigenArcStatus.IDLE
            for verdict, power, known in zip(verdicts, powers.tolist(), tested, strict=True)
        ]
        status = _outcome(together, raised=True)
        return status, outcomes, raises, self._times(start, powers)

    def _raise(
        self, trials: "_Trials", start: Float[Tensor, " k"], pairs: Bool[Tensor, " k"]
    ) -> tuple[int, Verdict]:
        """Count the raises that a step along some pairs takes to keep its promise."""
        raises, verdict = 0, trials.at(start, pairs).verdict
        while verdict is Verdict.UNSUCCESSFUL and raises < self.max_raises:
            raises += 1
            verdict = trials.at(self._times(start, raises * pairs.double()), pairs).verdict
        return raises, verdict

    def _lowered_singly(
        self, trials: "_Trials", start: Float[Tensor, " k"], powers: Float[Tensor, " k"]
    ) -> Float[Tensor, " k"]:
        """Exponents of γ₁, lowered one after the other as far as ρ ≥ η₁ holds."""
        for i in powers.nonzero().flatten():
            while powers[i] > 0:
                lower = powers.clone()
                lower[i] -= 1
                if not trials.at(self._times(start, lower)).verdict.holds:
                    break
                powers = lower
        return powers

    def _times(
        self, start: Float[Tensor, " k"], powers: Float[Tensor, " k"]
    ) -> Float[Tensor, " k"]:
        """γ₁ᵖ L: from powers, so that the same L is met again to the last bit."""
        return start * self.rule.gamma1**powers


def _adapted(
    status: EigenArcStatus, tested: Bool[Tensor, " k"], lipschitz: Float[Tensor, " k"]
) -> _Adapted:
    """Treat all pairs alike that have a step."""
    return status, [status if x else EigenArcStatus.IDLE for x in tested], 0, lipschitz


def _outcome(verdict: Verdict, *, raised: bool) -> EigenArcStatus:
    """What a search for L that began with a broken promise came to."""
    if verdict is Verdict.UNRESOLVED:
        return EigenArcStatus.UNRESOLVED
    if not verdict.holds:
        return EigenArcStatus.GAVE_UP
    return EigenArcStatus.RAISED if raised else EigenArcStatus.KEPT


class _Trials:
    """ELMO's steps from one θ under different L, evaluated once each."""

    def __init__(
        self,
        loss_along: LossAlong,
        rule: AcceptanceRule,
        loss: float,
        slope: Float[Tensor, " k"],
        curvature: Float[Tensor, " k"],
        rounding: float,
    ) -> None:
        slope, curvature = (x.detach().to("cpu", torch.float64) for x in (slope, curvature))
        self.known = slope.isfinite() & (slope >= 0) & curvature.isfinite()
        self._pairs = {
            "slope": torch.where(self.known, slope, 0.0),
            "curvature": torch.where(self.known, curvature, 0.0),
        }
        self.floor = rounding * newton_threshold(**self._pairs)
        self._loss_along, self._rule = loss_along, rule
        self._loss, self._rounding = loss, rounding
        self._values: dict[tuple[float, ...], float] = {}

    @property
    def evaluations(self) -> int:
        return len(self._values)

    def step(self, lipschitz: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """x*; zero for pairs left out."""
        return elmo_step(**self._pairs, lipschitz=lipschitz)

    def at(self, lipschitz: Float[Tensor, " k"], pairs: Bool[Tensor, " k"] | None = None) -> Trial:
        """ρ under these L, along all pairs or some; an infinite step is refused unseen."""
        x = self.step(lipschitz)
        if pairs is not None:
            x = torch.where(pairs, x, 0.0)
        model = pessimistic_model(x, **self._pairs, lipschitz=lipschitz)
        predicted = -float(model.sum())
        if not math.isfinite(predicted):
            return REFUSED
        if not x.any():
            return Trial(math.nan, Verdict.UNRESOLVED)
        return self._rule.judge(
            loss=self._loss,
            trial=self._value(x),
            predicted=predicted,
            rounding=self._rounding,
        )

    def _value(self, x: Float[Tensor, " k"]) -> float:
        key = tuple(x.tolist())
        if key not in self._values:
            self._values[key] = float(self._loss_along(x))
        return self._values[key]
