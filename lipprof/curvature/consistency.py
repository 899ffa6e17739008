"""Is there one symmetric matrix to speak of?  Two evaluations and three products tell.

Ritz values of an operator that changes from product to product mean nothing, and no residual shows
it.  A retained gradient graph repeats itself trivially, so the operator is built twice:

* determinism: both must agree on the loss and on the product with one vector;
* symmetry: with a random v and u = H v / ‖H v‖, uᵀ(H v) = ‖H v‖ and vᵀ(H u) must be equal.  It
  fails where a backward is not the derivative of its forward: a custom function that detaches
  what it should not and, by differences of gradients, gradient reversal and straight-through
  estimators.

Costs one gradient and three products more than building the operator once (measured on a GPT: 7
gradients, with the operator that is handed back).  Only when a check fails are hooks put on the
modules, to find the layer.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from lipprof.curvature.guards import undisturbed
from lipprof.curvature.operators import LossHessian
from lipprof.errors import (
    NondeterministicCurvatureError,
    NonfiniteError,
    NotDifferentiableError,
)
from lipprof.linalg.inner import dot, norm

SYMMETRY_LIMIT = 0.01
"""Measured on a GPT: 4e-7 in float32, up to 2e-3 under bfloat16 autocast; a wrong backward: 1e-2 to
1."""

Operator = TypeVar("Operator", bound=LossHessian)


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """Relative differences that should be zero to rounding."""

    loss: float  # between two evaluations
    gradient: float  # likewise; only told, for near a minimum it is all noise
    product: float  # likewise, of H u with one u that H amplifies
    asymmetry: float  # |uᵀ(H v) − vᵀ(H u)| / ‖H v‖


def checked_operator(
    build: Callable[[], Operator], model: nn.Module, *, limit: float | None = None, seed: int = 0
) -> tuple[Operator, Consistency]:
    """Build an operator twice and refuse it unless it is repeatable and symmetric.

    Args:
        build: evaluates the loss and its gradient anew; called under ``undisturbed``.
        model: in which an offending layer is looked for.
        limit: largest relative difference; default eps^½ of the operator's dtype, 3e-4 in float32.
            The asymmetry may always be ``SYMMETRY_LIMIT``.
        seed: of the vectors.

    Returns:
        The operator of the second evaluation, and what was found.

    Raises:
        NonfiniteError: a product is NaN or infinite.
        NondeterministicCurvatureError: two evaluations differ.
        NotDifferentiableError: the products do not belong to a symmetric matrix.
    """
    first = _build(build, model)
    generator = torch.Generator(first.device).manual_seed(seed)
    v = torch.randn(first.n, generator=generator, dtype=first.dtype, device=first.device)
    v /= norm(v).to(v)
    image = first.matvec(v)
    size = float(norm(image))
    if not math.isfinite(size):
        raise NonfiniteError(
            "A Hessian-vector product is NaN or infinite although loss and gradient are finite: "
            "check the loss for sqrt(0), norms of zero vectors, or overflow."
        )
    u = image / size if size > 0 else v
    loss, gradient, product = first.loss, first.gradient(), first.matvec(u)
    allowed = math.sqrt(torch.finfo(first.dtype).eps) if limit is None else limit
    del first  # its graph, before the next one is built
    second = _build(build, model)
    found = Consistency(
        loss=abs(second.loss - loss) / max(abs(loss), abs(second.loss), torch.finfo(v.dtype).tiny),
        gradient=_relative(second.gradient(), gradient),
        product=_relative(second.matvec(u), product),
        asymmetry=abs(size - float(dot(v, product))) / size if size > 0 else 0.0,
    )
    if max(found.loss, found.product) > allowed:
        raise NondeterministicCurvatureError(_explain(found, allowed, build, model))
    if found.asymmetry > max(allowed, SYMMETRY_LIMIT):
        raise NotDifferentiableError(_asymmetric(found, max(allowed, SYMMETRY_LIMIT)))
    return second, found


def _asymmetric(found: Consistency, limit: float) -> str:
    return (
        f"The Hessian is not symmetric: uᵀ(Hv) and vᵀ(Hu) differ by {found.asymmetry:.1e} "
        f"(limit {limit:.0e}), so its eigenvalues would mean nothing. A backward in this model "
        "is not the derivative of its forward: a custom autograd function that detaches a part, "
        "gradient reversal, a straight-through estimator. Measure the loss without it, or accept "
        "it with check_deterministic=False."
    )


def _build(build: Callable[[], Operator], model: nn.Module) -> Operator:
    with undisturbed(model):
        return build()


def _relative(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    size = max(float(norm(x)), float(norm(y)))
    return float(norm(x - y)) / size if size > 0 else 0.0


def _explain(found: Consistency, limit: float, build: Callable[[], Any], model: nn.Module) -> str:
    return (
        f"Two evaluations of the same loss at the same parameters differ: by {found.loss:.1e} in "
        f"the loss, {found.gradient:.1e} in the gradient, {found.product:.1e} in a Hessian-vector "
        f"product (limit {limit:.0e}). There is no single Hessian, and eigenvalues would mean "
        f"nothing. {_cause(found, limit, _calls(build, model), _calls(build, model))} Or accept it "
        "with check_deterministic=False."
    )


_Fingerprint = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Call:
    """One forward of a module, by fingerprints of what went in and what came out."""

    name: str
    module: nn.Module
    inputs: _Fingerprint
    outputs: _Fingerprint

    @property
    def label(self) -> str:
        mode = "train" if self.module.training else "eval"
        layer = f"layer {self.name!r}" if self.name else "the model"
        return f"{layer} ({type(self.module).__name__}, in {mode} mode)"


def _calls(build: Callable[[], Any], model: nn.Module) -> list[_Call]:
    """Evaluate once more and record the calls of all modules, in the order of their ends."""
    calls: list[_Call] = []
    handles = [
        handle for name, module in model.named_modules() for handle in _record(calls, name, module)
    ]
    try:
        _build(build, model)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _record(calls: list[_Call], name: str, module: nn.Module) -> Iterator[RemovableHandle]:
    given: list[_Fingerprint] = []

    def before(_: nn.Module, arguments: Any, keywords: Any) -> None:
        given.append(_fingerprint((arguments, keywords)))  # now: it may be overwritten in place

    def after(_: nn.Module, __: Any, output: Any) -> None:
        calls.append(_Call(name, module, given.pop(), _fingerprint(output)))

    yield module.register_forward_pre_hook(before, with_kwargs=True)
    yield module.register_forward_hook(after)


def _fingerprint(values: Any) -> _Fingerprint:
    """Hash of a weighted sum of each tensor; NaN is equal to itself."""
    return tuple(
        str(leaf.detach().flatten().double() @ _ramp(leaf))
        for leaf in pytree.tree_leaves(values)
        if isinstance(leaf, Tensor) and not leaf.is_complex()
    )


def _ramp(like: Tensor) -> Tensor:
    return torch.linspace(1, 2, like.numel(), dtype=torch.float64, device=like.device)


def _cause(found: Consistency, limit: float, first: list[_Call], second: list[_Call]) -> str:
    """Say where two evaluations part, and what to do."""
    pairs = list(zip(first, second, strict=False))
    for a, b in pairs:
        if a.name != b.name:
            return (
                f"The forward takes another path, at {b.label}. Make it depend on its inputs only."
            )
        if a.inputs == b.inputs and a.outputs != b.outputs:
            return (
                f"They part at {b.label}, which makes different outputs of the same inputs. Use "
                "mode='eval', or let it draw from torch's global generator, which lipprof seeds."
            )
    parted = [b for a, b in pairs if a.inputs != b.inputs]
    if parted:
        return (
            f"Each time the loss closure hands other inputs to {parted[-1].label}: a loader that "
            "draws a new batch, or augmentation. Give fixed batches as probe=."
        )
    if found.loss > limit:
        return (
            "All layers repeat exactly, so the difference arises in the loss closure itself, "
            "outside of them. Take random numbers from torch's global generator, which lipprof "
            "seeds, and keep no state between calls."
        )
    return (
        "All layers repeat exactly, so the difference arises in the backward: a kernel that adds "
        "in changing order. Call torch.use_deterministic_algorithms(True)."
    )
