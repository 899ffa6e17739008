"""PyHessian 0.1 (Yao, Gholami, Keutzer, Mahoney 2020) as a second opinion.

Power iteration with deflation for the top end, Hutchinson for the trace, over PyHessian's own
gradient graph and products, so that nothing but the closure is shared with lipprof's engine.  Three
things are put right on the way: what PyHessian leaves behind (a ``.grad`` that holds the graph,
eval mode, a warning) does not get out; its eigenvalues, one iteration stale, are measured again
with explicit residuals; and it finds the largest *magnitudes*, so more are asked for until there
are enough positive ones.

Its tolerance is a relative change of the eigenvalue.  With ρ = λ₂/λ₁ that change is
(1 + ρ) (res/λ)², so tol² there is at least as strict as a residual of tol here.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal, NoReturn

import torch
from jaxtyping import Float
from pyhessian import group_product, hessian, hessian_vector_product
from torch import Tensor, nn
from torch.nn import Parameter

from lipprof.curvature.guards import undisturbed
from lipprof.curvature.kernels import twice_differentiable
from lipprof.curvature.loss.gradients import checked_value
from lipprof.curvature.loss.losses import ProbeLoss
from lipprof.curvature.parameters import ParameterView
from lipprof.curvature.second_order import is_missing_second_derivative, missing_second_derivative
from lipprof.errors import ConfigError, NonfiniteError
from lipprof.linalg import RitzPairs, TraceEstimate, standard_error
from lipprof.linalg.ritz import measure_explicitly, ritz_pairs

_CANNOT = {
    "bottom": "finds eigenvalues by their magnitude and has no bottom end: use bottom=0",
    "density": "cannot compute a density on this torch: it calls torch.eig, which was removed",
    "diagonal": "has no estimate of the diagonal: use spectrum or trace",
    "blocks": "has no diagonal blocks: use spectrum or trace",
    "stability": "has no preconditioned Hessian: use spectrum or trace",
}


Missing = Literal["bottom", "density", "diagonal", "blocks", "stability"]


def refuse(what: Missing) -> NoReturn:
    """Say that PyHessian cannot do something.

    Args:
        what: a key of what it cannot do.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(f"engine='pyhessian': PyHessian 0.1 {_CANNOT[what]}, or the default engine.")


def pyhessian_eigenpairs(
    loss: ProbeLoss,
    view: ParameterView,
    *,
    top: int,
    bottom: int = 0,
    tol: float = 1e-3,
    max_matvecs: int = 1000,
    seed: int = 0,
) -> RitzPairs:
    """Compute the ``top`` largest eigenpairs; ``.grad``, modes and random states stay as they are.

    Args:
        loss: the closure.
        view: the parameters.
        top: number of largest eigenvalues.
        bottom: must be 0.
        tol: residual over the largest eigenvalue.
        max_matvecs: limit of Hessian-vector products, residual checks not counted; at least 2 for
            each eigenvalue are made.
        seed: of the start vectors.

    Returns:
        The pairs; those over tolerance are marked.

    Raises:
        ConfigError: what PyHessian cannot do was asked for.
        NonfiniteError: a product is NaN or infinite.
    """
    if bottom:
        refuse("bottom")
    if not 1 <= top <= view.n:
        raise ConfigError(f"Asked for top={top} eigenpairs of n={view.n} parameters.")
    with _products(loss, view) as products:
        torch.manual_seed(seed)
        vectors = _positive_end(products, top, tol=tol, max_matvecs=max_matvecs)
        rows = torch.stack([view.flatten(vector) for vector in vectors])
        if not rows.isfinite().all():
            raise NonfiniteError("A Hessian-vector product of PyHessian's is NaN or infinite.")
        rows = torch.linalg.qr(rows.T).Q.T.contiguous()
        values, residuals = measure_explicitly(_Flat(products), rows)
        return ritz_pairs(
            values,
            rows,
            residuals,
            top=top,
            tol=tol,
            scale=float(values.abs().max()),
            num_matvecs=products.count,
        )


def pyhessian_trace(
    loss: ProbeLoss, view: ParameterView, *, probes: int, seed: int = 0
) -> TraceEstimate:
    """Estimate the trace by PyHessian's Hutchinson samples.

    Its own stopping rule (a small change of the running mean, of either sign) is turned off: it
    ends at chance, and at once where the trace is negative.

    Args:
        loss: the closure.
        view: the parameters.
        probes: number of samples, one product each.
        seed: of the probes.

    Returns:
        Mean and standard error.

    Raises:
        NonfiniteError: a product is NaN or infinite.
    """
    with _products(loss, view) as products:
        torch.manual_seed(seed)
        samples = torch.tensor(products.trace(maxIter=probes, tol=-math.inf), dtype=torch.float64)
    if not samples.isfinite().all():
        raise NonfiniteError("A Hessian-vector product of PyHessian's is NaN or infinite.")
    return TraceEstimate(
        trace=float(samples.mean()),
        stderr=float(standard_error(samples)),
        num_matvecs=products.count,
    )


def _positive_end(
    products: "_Products", top: int, *, tol: float, max_matvecs: int
) -> list[list[Tensor]]:
    """Ask for more eigenvalues until ``top`` of them are positive or the budget is spent."""
    asked = top
    while True:
        steps = max(2, (max_matvecs - products.count) // asked)
        values, vectors = products.eigenvalues(maxIter=steps, tol=tol**2, top_n=asked)
        missing = top - sum(value > 0 for value in values)
        if missing <= 0 or asked == products.view.n or products.count >= max_matvecs:
            falling = sorted(range(asked), key=lambda i: -values[i])
            return [vectors[i] for i in falling[:top]]
        asked = min(asked + missing, products.view.n)


class _Closure(nn.Module):
    """The closure in the dress of a model; its output is the loss."""

    def __init__(self, loss: ProbeLoss, view: ParameterView) -> None:
        super().__init__()
        self.loss, self.view = loss, view

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:  # noqa: ARG002
        return iter(self.view.parameters)  # pyright: ignore[reportReturnType]

    def forward(self, _: Tensor) -> Tensor:
        # PyHessian fails on parameters that the loss does not use, or uses linearly: 0 θ² has a
        # gradient with a graph for each.
        total = 0 * torch.stack([p.square().sum() for p in self.view.parameters]).sum()
        for weight, loss in self.loss.terms():
            checked_value(loss)
            total = total + weight * loss.reshape(())
        return total


class _Products(hessian):
    """PyHessian over a closure, with its products counted.

    ``full_dataset`` makes its algorithms call ``dataloader_hv_product``, the one place where all
    products pass.
    """

    def __init__(self, loss: ProbeLoss, view: ParameterView) -> None:
        unused = torch.zeros(1, device=view.device)
        super().__init__(
            _Closure(loss, view),
            lambda outputs, _: outputs,
            data=(unused, unused),
            cuda=view.device.type == "cuda",
        )
        self.view = view
        self.full_dataset = True
        self.count = 0

    def dataloader_hv_product(self, v: list[Tensor]) -> tuple[float, list[Tensor]]:
        self.count += 1
        try:
            product = list(hessian_vector_product(self.gradsH, self.params, v))
        except RuntimeError as error:
            if not is_missing_second_derivative(error):
                raise
            raise missing_second_derivative(error, self.gradsH, self.view) from error
        return float(group_product(product, v)), product


class _Flat:
    """The products as a ``SymmetricOperator``."""

    def __init__(self, products: _Products) -> None:
        self.products, self.view = products, products.view
        self.n, self.dtype, self.device = self.view.n, self.view.dtype, self.view.device

    def matvec(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        _, product = self.products.dataloader_hv_product(self.view.split(vector))
        return self.view.flatten(product)


@contextmanager
def _products(loss: ProbeLoss, view: ParameterView) -> Iterator[_Products]:
    if view.device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"PyHessian 0.1 runs on CPU and CUDA only, not on {view.device}.")
    if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in view.parameters):
        raise ConfigError(
            "engine='pyhessian' calls backward(), which would set off the parameters' "
            "post-accumulate hooks (an optimizer that steps in the backward?). Use the default "
            "engine."
        )
    cuda = view.device.type == "cuda"
    with (
        undisturbed(loss.model),
        twice_differentiable(loss.model),
        torch.enable_grad(),
        torch.cuda.device(view.device) if cuda else nullcontext(),  # PyHessian says "cuda" only
    ):
        for parameter in view.parameters:
            parameter.grad = None  # PyHessian takes whatever has accumulated there for the gradient
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph")
            products = _Products(loss, view)
        yield products
