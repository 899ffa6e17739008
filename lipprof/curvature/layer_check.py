"""Which layers of a model have second and third derivatives, and whether they are right.

Every kind of layer is tried alone, on what one of its instances was given, as a function of its
parameters and of its inputs:

* on its own kernels, in its own precision: can its gradient be differentiated at all?
* in float64, on the kernels that measurements use: products with the Hessian against central
  differences of gradients, and third derivatives against differences of products (``third_check``).

A layer with layers inside is told of only where none of those inside explains what was found.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lipprof.curvature.guards import undisturbed
from lipprof.curvature.hessian.differences import DifferenceOperator
from lipprof.curvature.hessian.retained import retained_hessian
from lipprof.curvature.kernels import twice_differentiable
from lipprof.curvature.loss.losses import ProbeLoss
from lipprof.curvature.loss.replay import differentiable_outputs
from lipprof.curvature.parameters import ParameterView
from lipprof.curvature.third.check import Outcome, ProductDifferences, compare
from lipprof.curvature.third.products import third_derivatives
from lipprof.errors import LipprofError, NotDifferentiableError, ThirdDerivativeError
from lipprof.linalg.inner import norm

LARGEST = 20_000_000
"""Numbers in a layer and its inputs beyond which it is not copied to float64."""
AGREEMENT = 1e-3
"""Of products in float64 with central differences of gradients, which reach 1e-6."""

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Derivative(Enum):
    """What there is to say of a layer's derivative."""

    RIGHT = "right"
    REPLACED = "missing on its own kernels, right on those that measurements use"
    MISSING = "missing"
    WRONG = "wrong"
    UNKNOWN = "not to be checked"


@dataclass(frozen=True, slots=True)
class LayerCheck:
    """Of one kind of layer."""

    kind: str  # name of the class
    count: int  # instances in the model
    second: Derivative
    third: Derivative
    reason: str  # of what is not right; empty where all is

    @property
    def well(self) -> bool:
        """Whether there is nothing to tell."""
        return self.second is self.third is Derivative.RIGHT


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What an instance of a layer was given."""

    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


@contextmanager
def recorded_calls(model: nn.Module) -> Iterator[dict[type[nn.Module], LayerCall]]:
    """Keep what the smallest instance of each kind of layer is given in a forward.

    Args:
        model: the root module, which is not recorded itself.

    Yields:
        Copies by kind, as they come.
    """
    calls: dict[type[nn.Module], LayerCall] = {}

    def record(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        known = calls.get(type(module))
        if known is None or _numbers(module) < _numbers(known.module):
            calls[type(module)] = LayerCall(module, *_copied((arguments, keywords)))

    handles = [
        module.register_forward_pre_hook(record, with_kwargs=True)
        for module in model.modules()
        if module is not model and not isinstance(module, _CONTAINERS)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def check_layers(
    model: nn.Module, calls: dict[type[nn.Module], LayerCall], *, seed: int = 0
) -> list[LayerCheck]:
    """Try every kind of layer that was called.

    Args:
        model: in which instances are counted.
        calls: see ``recorded_calls``.
        seed: of the vectors.

    Returns:
        The findings, inner layers before those that contain them.
    """
    found: dict[type[nn.Module], LayerCheck] = {}
    for kind, call in sorted(
        calls.items(), key=lambda item: sum(1 for _ in item[1].module.modules())
    ):
        count = sum(type(module) is kind for module in model.modules())
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            check = _check(call, count)
        inner = [found[type(m)] for m in call.module.modules() if type(m) in found]
        if check.well or all(layer.well for layer in inner):
            found[kind] = check
    return list(found.values())


def _check(call: LayerCall, count: int) -> LayerCheck:
    kind = type(call.module).__name__
    second, third, reason = Derivative.UNKNOWN, Derivative.UNKNOWN, ""
    try:
        own = _Alone(call, double=False)
        if own.numbers > LARGEST:
            reason = f"it has more than {LARGEST:,} numbers"
            return LayerCheck(kind, count, second, third, reason)
        missing = _missing_on_own_kernels(own)
        alone = _Alone(call, double=True)
        with undisturbed(alone), twice_differentiable(alone):
            second, reason = _second(alone)
            if second is Derivative.RIGHT:
                third, reason = _third(alone)
        if second is Derivative.RIGHT and missing:
            second, reason = Derivative.REPLACED, reason or missing
    except Exception as error:  # noqa: BLE001 - whatever a layer does outside of its place
        reason = f"{type(error).__name__}: {_first_line(error)}"
    return LayerCheck(kind, count, second, third, reason)


class _Alone(nn.Module):
    """A copy of a layer with its inputs as parameters; its forward is a scalar of all outputs."""

    def __init__(self, call: LayerCall, *, double: bool) -> None:
        super().__init__()
        self.layer = copy.deepcopy(call.module)
        leaves, self._structure = pytree.tree_flatten((call.arguments, call.keywords))
        self._leaves: list[Any] = leaves
        self._places = [i for i, leaf in enumerate(leaves) if _is_real(leaf)]
        self.given = nn.ParameterList(nn.Parameter(leaves[i].clone()) for i in self._places)
        if double:
            self.double()
        self.numbers = sum(tensor.numel() for tensor in self.parameters())

    def forward(self) -> Tensor:
        leaves = list(self._leaves)
        for i, tensor in zip(self._places, self.given, strict=True):
            leaves[i] = tensor * 1.0  # not a leaf: layers may write into their inputs
        arguments, keywords = pytree.tree_unflatten(leaves, self._structure)
        outputs = differentiable_outputs(self.layer(*arguments, **keywords)).values()
        total = torch.zeros((), device=next(self.parameters()).device)
        for output in outputs:
            phase = torch.arange(output.numel(), device=output.device).view(output.shape)
            total = total + (torch.sin(output + phase)).mean()
        return total

    def loss(self) -> ProbeLoss:
        return ProbeLoss(self, lambda alone: alone())

    def view(self) -> ParameterView:
        return ParameterView.of(self)


def _missing_on_own_kernels(alone: _Alone) -> str:
    """Why the layer cannot be differentiated twice as it is; empty where it can."""
    try:
        with undisturbed(alone):
            operator = retained_hessian(alone.loss(), alone.view())
            operator.matvec(torch.ones(operator.n, dtype=operator.dtype, device=operator.device))
    except NotDifferentiableError as error:
        return _first_line(error)
    return ""


def _second(alone: _Alone) -> tuple[Derivative, str]:
    loss, view = alone.loss(), alone.view()
    vector = torch.randn(view.n, dtype=view.dtype, device=view.device)
    try:
        product = retained_hessian(loss, view).matvec(vector)
    except NotDifferentiableError as error:
        return Derivative.MISSING, _first_line(error)
    try:
        expected = DifferenceOperator(view, loss).matvec(vector)
    except LipprofError:
        return Derivative.RIGHT, ""  # kinks: it exists, and differences have nothing to say
    size = max(float(norm(expected)), float(norm(product)))
    error = float(norm(product - expected)) / size if size else 0.0
    if error <= AGREEMENT:
        return Derivative.RIGHT, ""
    return Derivative.WRONG, f"products differ by {error:.1%} from differences of gradients"


def _third(alone: _Alone) -> tuple[Derivative, str]:
    loss, view = alone.loss(), alone.view()
    vector = torch.randn(view.n, dtype=view.dtype, device=view.device)
    vector /= norm(vector)
    try:
        gradient = third_derivatives(loss, view, vector[None]).gradients[0]
    except ThirdDerivativeError as error:
        return Derivative.MISSING, _first_line(error)
    found = compare(gradient, vector, ProductDifferences(loss, view, double=False))
    if found.outcome is Outcome.AGREES:
        return Derivative.RIGHT, ""
    if found.outcome is Outcome.CONTRADICTS:
        return Derivative.WRONG, f"third derivatives differ by {found.error:.1%} from differences"
    return Derivative.UNKNOWN, "differences do not agree among themselves, as at kinks"


def _is_real(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() > 0


def _copied(tree: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), tree)


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "").partition(". ")[0].rstrip(".")
