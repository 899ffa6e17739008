# pyright: reportPrivateImportUsage=false
"""ELMO and FOSI: second-order steps inside the Hessian's eigenspaces, any optimizer outside.

With eigenpairs (λᵢ, vᵢ) in the rows of V, the live gradient g and slopes γᵢ = |g·vᵢ|,

    Δθ = Σ xᵢ·(−sign(g·vᵢ) vᵢ) + (I − VᵀV) d,

where d is the displacement by the base optimizer.  xᵢ is ELMO's x* (eq. 7) or FOSI's αγᵢ/|λᵢ|.

1. The base sees (I − VᵀV) g, so that its moments describe the complement alone: Adam's second
   moment would otherwise be ruled by the very eigenspaces that are taken from it.  Its displacement
   is projected too, since what it makes of g leaves the complement: an elementwise preconditioner,
   weight decay, and momentum gathered before the eigenspaces changed.  So inside the eigenspaces
   there is no weight decay.  ``.grad`` is put back after the step.
2. An eigenspace without a finite step (L unknown; no minimum, as for L = 0 ≥ λ) is the base's,
   and so is, where a ``rule`` is given, one that it sends to the first-order side (``selection``).
   Before any eigenspaces are observed, and in a step where one of their parameters has no gradient,
   all is the base's, bitwise.
3. The parameter groups are the base's own.  The lr in them scales the steps inside the eigenspaces
   by lr / base_lr, base_lr being lr at the start; by the smallest ratio of the groups concerned.
   x* may be shortened so: M falls monotonically from 0 to x*.
4. Eigenspaces stay in use until the next ones are observed, as in FOSI.

Cost: V, and per step three vectors of n, 8nk flops, no host synchronisation.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from lipprof.advice import Choice, Recommendation, Rule
from lipprof.curvature import ParameterView
from lipprof.errors import ConfigError
from lipprof.linalg.inner import norm, project
from lipprof.lipschitz import Eigenspaces, elmo_step
from lipprof.optim.arm import Factory, Group, check_factory, check_step
from lipprof.optim.selection import DEFAULT_THRESHOLD, EigenspaceSelection
from lipprof.optim.switches import Switch

DEFAULT_TRUST = 0.1
"""Relative changes of the parameters are the scale-free measure of a network's step (Bernstein et
al. 2020, as in LARS, You et al. 2017).  That a tenth is the limit is a convention, not measured."""


class EigenspaceOptimizer(Optimizer):
    """A base optimizer whose steps are replaced inside observed eigenspaces; see the module."""

    def __init__(
        self,
        params: Any,
        base: Factory,
        *,
        trust: float | None,
        rule: Rule | str | None,
        threshold: float,
    ) -> None:
        self._selection = EigenspaceSelection(rule, threshold)
        self._iteration = 0
        check_factory("base", base)
        if trust is not None and not trust > 0:
            raise ConfigError(f"Got {trust=}: expected a number > 0, or None for no clip.")
        self.trust = trust
        self.base = base(params)
        check_step(self.base, type(self).__name__)
        super().__init__(self.base.param_groups, self.base.defaults)
        self._share()
        self._eigenspaces: Eigenspaces | None = None
        self._view: ParameterView | None = None

    @abstractmethod
    def _lengths(self, eigenspaces: Eigenspaces, slope: Float[Tensor, " k"]) -> Tensor:
        """xᵢ ≥ 0 for slopes γᵢ, both (k,); not finite: the eigenspace is left to the base."""

    def _share(self) -> None:
        """Have the base's groups and state for one's own."""
        self.param_groups, self.state = self.base.param_groups, self.base.state
        for group in self.param_groups:
            group.setdefault("base_lr", group["lr"])

    def add_param_group(self, param_group: Group) -> None:
        """Take in one more group; the observed eigenspaces do not reach into it."""
        if self.param_groups is not self.base.param_groups:  # torch's constructor
            super().add_param_group(param_group)
            return
        self.base.add_param_group(param_group)
        self._share()

    @property
    def eigenspaces(self) -> Eigenspaces | None:
        """Those in use; None before any were observed."""
        return self._eigenspaces

    @property
    def rule(self) -> Rule | None:
        """Says which eigenspaces are second-order; None: all are."""
        return self._selection.rule

    @property
    def recommendation(self) -> Recommendation | None:
        """What ``rule`` said of the eigenspaces in use; None before the first step with them."""
        return self._selection.recommendation

    @property
    def assigned(self) -> dict[str, Choice]:
        """What ``rule`` chose for every eigenspace, by falling λ; empty before the first choice."""
        return dict(self._selection.assigned)

    @property
    def switches(self) -> list[Switch]:
        """Answers other than an eigenspace's last one, first-order being that of the start."""
        return self._selection.switches

    def observe_eigenspaces(self, eigenspaces: Eigenspaces) -> None:
        """Step in these eigenspaces from now on.

        Args:
            eigenspaces: of the loss as it is, not scaled by GradScaler; of all of this optimizer's
                parameters or some.  The vectors are kept, not copied.

        Raises:
            ConfigError: a parameter that is not this optimizer's, or several devices.
        """
        owned = {p for group in self.param_groups for p in group["params"]}
        for p in eigenspaces.parameters:
            if p not in owned:
                raise ConfigError(
                    f"Got eigenspaces over a parameter of shape {tuple(p.shape)} that this "
                    "optimizer does not hold. Pass eigenspaces of its own parameters only."
                )
        self._selection.renew()
        view = ParameterView((str(i), p) for i, p in enumerate(eigenspaces.parameters))
        self._view, self._eigenspaces = (
            view,
            Eigenspaces(
                eigenspaces.parameters,
                eigenspaces.vectors.to(view.device, view.dtype),
                eigenspaces.values.to(view.device, torch.float64),
                eigenspaces.lipschitz.to(view.device, torch.float64),
            ),
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step.

        Args:
            closure: re-evaluates the loss and its gradient; called once.

        Returns:
            The loss of the closure, if there is one.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        self._iteration += 1
        view, spaces = self._view, self._eigenspaces
        if view is None or spaces is None or any(p.grad is None for p in view.parameters):
            self.base.step()
            return loss
        gradient = view.flatten([p.grad for p in view.parameters])  # pyright: ignore[reportArgumentType]
        along = project(spaces.vectors, gradient)
        lengths = self._lengths(spaces, along.abs())
        taken = lengths.isfinite()
        if self._selection.rule is not None:
            taken &= self._selection.selected(spaces, along.abs(), self._iteration - 1)
        _add_(gradient, spaces.vectors, -torch.where(taken, along, 0.0))
        start = view.snapshot()
        with _lent_gradient(view, gradient):
            self.base.step()
        displacement = view.snapshot().sub_(start)
        if self.trust is not None:
            scale = torch.maximum(norm(start), norm(displacement))
            lengths = torch.minimum(lengths, self.trust * scale)
        wanted = torch.where(along > 0, -1.0, 1.0) * lengths * self._schedule(view)  # eq. 1
        missing = torch.where(taken, wanted - project(spaces.vectors, displacement), 0.0)
        correction = _add_(displacement.zero_(), spaces.vectors, missing)
        torch._foreach_add_(list(view.parameters), view.split(correction))  # pyright: ignore[reportPrivateImportUsage]
        return loss

    def _schedule(self, view: ParameterView) -> float:
        """What learning rate schedules have made of the step: 1 at the start."""
        concerned = set(view.parameters)
        return min(
            float(group["lr"]) / float(group["base_lr"]) if group["base_lr"] else 1.0
            for group in self.param_groups
            if not concerned.isdisjoint(group["params"])
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on exactly: the base's, and eigenspaces."""
        spaces = self._eigenspaces
        index = {p: i for i, p in enumerate(self._parameters())}
        return self.base.state_dict() | {
            "iteration": self._iteration,
            "selection": self._selection.state_dict(),
            "eigenspaces": None
            if spaces is None
            else {
                "parameters": [index[p] for p in spaces.parameters],
                "vectors": spaces.vectors,
                "values": spaces.values,
                "lipschitz": spaces.lipschitz,
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, with a base of the same kind.

        Raises:
            ConfigError: the state is another optimizer's.
        """
        if "eigenspaces" not in state_dict:
            raise ConfigError(
                f"This state_dict is not of {type(self).__name__}: it has no entry 'eigenspaces'. "
                "Load the state of a plain optimizer into `.base`."
            )
        rest = dict(state_dict)
        stored, selection = rest.pop("eigenspaces"), rest.pop("selection")
        self._iteration = rest.pop("iteration")
        self.base.load_state_dict(rest)
        self._share()
        self._view = self._eigenspaces = None
        if stored is not None:
            parameters = self._parameters()
            own = tuple(parameters[i] for i in stored["parameters"])
            self.observe_eigenspaces(Eigenspaces(**{**stored, "parameters": own}))
        self._selection.load_state_dict(selection)

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]


class ELMO(EigenspaceOptimizer):
    """The minmax step x* (eq. 7) inside the eigenspaces, the base outside; see the module.

    Args:
        params: ``model.named_parameters()``, plain parameters, or groups.
        base: builds the base optimizer from them, as ``partial(SGD, lr=1e-2, momentum=0.9)``.
        trust: largest |xᵢ| over ‖θ‖ (or over the base's step, if that is longer); None: no clip.
        rule: which eigenspaces to step in: ``"newton-safe"`` (eq. 8: those with L < 3λ²/γ, so none
            with λ ≤ 0), ``"threshold"`` (Alg. 2: those with L < ``threshold``), or another rule of
            ``lipprof.advice``; None: all.
        threshold: of that rule, loss/param³.

    Raises:
        ConfigError: an argument out of range, or a base that needs a closure.
    """

    def __init__(
        self,
        params: Any,
        base: Factory,
        *,
        trust: float | None = DEFAULT_TRUST,
        rule: Rule | str | None = None,
        threshold: float = DEFAULT_THRESHOLD,
    ) -> None:
        super().__init__(params, base, trust=trust, rule=rule, threshold=threshold)

    def _lengths(self, eigenspaces: Eigenspaces, slope: Float[Tensor, " k"]) -> Tensor:
        return elmo_step(slope=slope, curvature=eigenspaces.values, lipschitz=eigenspaces.lipschitz)


class FOSI(EigenspaceOptimizer):
    """Newton's step with |λ| inside the eigenspaces, the base outside (Sivan et al. 2023).

    Args:
        params: ``model.named_parameters()``, plain parameters, or groups.
        base: builds the base optimizer from them, as ``partial(Adam, lr=1e-3)``.
        newton_lr: α in αγ/(|λ| + damping); 1 is Newton's step, less averages minibatch noise.
        damping: loss/param².
        trust: largest |xᵢ| over ‖θ‖ (or over the base's step, if that is longer); None: no clip.
        rule: which eigenspaces to step in: ``"newton-safe"`` (eq. 8: those with L < 3λ²/γ, so none
            with λ ≤ 0), ``"threshold"`` (Alg. 2: those with L < ``threshold``), or another rule of
            ``lipprof.advice``; None: all.
        threshold: of that rule, loss/param³.

    Raises:
        ConfigError: an argument out of range, or a base that needs a closure.
    """

    def __init__(
        self,
        params: Any,
        base: Factory,
        *,
        newton_lr: float = 1.0,
        damping: float = 0.0,
        trust: float | None = DEFAULT_TRUST,
        rule: Rule | str | None = None,
        threshold: float = DEFAULT_THRESHOLD,
    ) -> None:
        if not (newton_lr > 0 and damping >= 0):
            raise ConfigError(
                f"Got {newton_lr=}, {damping=}: expected newton_lr > 0 and damping >= 0."
            )
        self.newton_lr, self.damping = newton_lr, damping
        super().__init__(params, base, trust=trust, rule=rule, threshold=threshold)

    def _lengths(self, eigenspaces: Eigenspaces, slope: Float[Tensor, " k"]) -> Tensor:
        return self.newton_lr * slope / (eigenspaces.values.abs() + self.damping)


def _add_(vector: Tensor, basis: Float[Tensor, "k n"], weights: Float[Tensor, " k"]) -> Tensor:
    return vector.addmv_(basis.T, weights.to(basis.dtype))


@contextmanager
def _lent_gradient(view: ParameterView, gradient: Float[Tensor, " n"]) -> Iterator[None]:
    """Show another gradient in ``.grad`` for a while."""
    own = [p.grad for p in view.parameters]
    for p, part in zip(view.parameters, view.split(gradient), strict=True):
        p.grad = part
    try:
        yield
    finally:
        for p, grad in zip(view.parameters, own, strict=True):
            p.grad = grad
