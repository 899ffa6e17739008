"""What computes Hessian-vector products: lipprof's backends and those of the peers.

Every engine is built over a copy of the problem and gives a product of flat vectors.  The peers are
used as their documentation advises, with what costs them time for nothing turned off: checks of
determinism, repeated passes over the data to count them.  Where attention is fused there is no
second derivative: exact engines run under the plain kernel (as their users would have to).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from textwrap import shorten
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from lipprof.curvature.ggn import gauss_newton
from lipprof.curvature.guards import undisturbed
from lipprof.curvature.hessian.backends import ClosureHessian
from lipprof.curvature.hessian.differences import DifferenceOperator
from lipprof.curvature.kernels import twice_differentiable
from lipprof.curvature.loss.losses import ProbeLoss
from lipprof.curvature.parameters import ParameterView
from lipprof.linalg import SymmetricOperator
from tests.benchmarks.problems import Problem, flatten

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Engine:
    """A way to compute products; ``build`` may raise where it does not apply."""

    name: str
    build: Callable[[Problem], Product]
    matrix: Literal["Hessian", "GGN"] = "Hessian"
    fused: bool = False  # runs on the model's own attention kernel

    @contextmanager
    def kernels(self) -> Iterator[None]:
        with nullcontext() if self.fused else sdpa_kernel(SDPBackend.MATH):
            yield

    def ready(self, problem: Problem) -> Product:
        """The product, to be called anywhere."""
        with self.kernels():
            product = self.build(problem)

        def call(vector: Tensor) -> Tensor:
            with self.kernels():
                return product(vector)

        return call


def reason_of(error: Exception) -> str:
    """One line about a failure."""
    line = next(iter(str(error).strip().splitlines()), "")
    return f"fails: {type(error).__name__}: {shorten(line, 100, placeholder=' ...')}"


# ------------------------------------------------------------------ lipprof


def closure_hessian(
    problem: Problem,
    backend: Literal["auto", "retained", "traced"],
    *,
    memory_limit: int | None = None,
) -> ClosureHessian:
    view = ParameterView.of(problem.model)
    return ClosureHessian(
        ProbeLoss(problem.model, problem.loss), view, backend=backend, memory_limit=memory_limit
    )


def operator_of(problem: Problem, hessian: ClosureHessian) -> SymmetricOperator:
    """Evaluate the closure at the present parameters."""
    with undisturbed(problem.model), twice_differentiable(problem.model):
        return hessian.operator()


def _lipprof(backend: Literal["retained", "traced"], problem: Problem) -> Product:
    return operator_of(problem, closure_hessian(problem, backend)).matvec


def _lipprof_ggn(problem: Problem) -> Product:
    view = ParameterView.of(problem.model)
    with undisturbed(problem.model), twice_differentiable(problem.model):
        return gauss_newton(
            problem.model, ProbeLoss(problem.model, problem.loss).terms(), view
        ).matvec


def _lipprof_differences(problem: Problem) -> Product:
    view = ParameterView.of(problem.model)
    with undisturbed(problem.model):
        operator = DifferenceOperator(view, ProbeLoss(problem.model, problem.loss))

    def product(vector: Tensor) -> Tensor:
        with undisturbed(problem.model):
            return operator.matvec(vector)

    return product


# ------------------------------------------------------------------ peers


def _curvlinops(kind: Literal["Hessian", "GGN"], problem: Problem) -> Product:
    import curvlinops

    operator = getattr(curvlinops, f"{kind}LinearOperator")(
        problem.model,
        problem.criterion,
        problem.parameters,
        [(problem.inputs, problem.targets)],
        check_deterministic=False,
        num_data=len(problem.inputs),
    )
    return lambda vector: operator @ vector


def _eigenthings(method: Literal["autograd", "finite_difference"], problem: Problem) -> Product:
    from hessian_eigenthings.loss_fns.standard import supervised_loss
    from hessian_eigenthings.operators.hessian import HessianOperator

    batch = (problem.inputs, problem.targets)
    operator = HessianOperator(
        problem.model, [batch], supervised_loss(problem.criterion), method=method
    )
    return operator.matvec


def pyhessian_of(problem: Problem):
    """PyHessian over the problem's batch; its graph stays in the parameters' ``grad``."""
    import warnings

    import pyhessian

    problem.model.zero_grad()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph")
        return pyhessian.hessian(
            problem.model,
            problem.criterion,
            data=(problem.inputs, problem.targets),
            cuda=problem.inputs.is_cuda,
        )


def _pyhessian(problem: Problem) -> Product:
    from pyhessian.utils import hessian_vector_product

    hessian = pyhessian_of(problem)

    def product(vector: Tensor) -> Tensor:
        parts = hessian_vector_product(hessian.gradsH, hessian.params, problem.split(vector))
        return flatten(parts)

    return product


# ------------------------------------------------------------------ neutral ground


def gradient(problem: Problem) -> Tensor:
    """The unit of cost: loss and gradient, once."""
    return flatten(torch.autograd.grad(problem.loss(problem.model), problem.parameters))


def plain_product(problem: Problem) -> Product:
    """Double backward in a few lines: the measure of truth, and no contestant."""
    with sdpa_kernel(SDPBackend.MATH):
        loss = problem.loss(problem.model)
        gradients = torch.autograd.grad(loss, problem.parameters, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        parts = torch.autograd.grad(
            gradients, problem.parameters, problem.split(vector), retain_graph=True
        )
        return flatten(parts)

    return product


def plain_gauss_newton(problem: Problem) -> Product:
    """Forward mode, the softmax's Hessian in closed form, and one backward."""
    names = [name for name, _ in problem.model.named_parameters()]

    def outputs_of(*parameters: Tensor) -> Tensor:
        tensors = dict(zip(names, parameters, strict=True))
        return functional_call(problem.model, tensors, (problem.inputs,))

    def product(vector: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            parameters = tuple(problem.parameters)
            outputs, moved = jvp(outputs_of, parameters, tuple(problem.split(vector)))
            p = outputs.detach().softmax(-1)
            curved = p * (moved - (p * moved).sum(-1, keepdim=True)) / p[..., 0].numel()
            return flatten(
                torch.autograd.grad(outputs_of(*parameters), parameters, curved.detach())
            )

    return product


ENGINES = (
    Engine("lipprof, retained graph", partial(_lipprof, "retained")),
    Engine("lipprof, traced", partial(_lipprof, "traced")),
    Engine("lipprof, differences", _lipprof_differences, fused=True),
    Engine("curvlinops", partial(_curvlinops, "Hessian")),
    Engine("hessian-eigenthings", partial(_eigenthings, "autograd")),
    Engine(
        "hessian-eigenthings, differences", partial(_eigenthings, "finite_difference"), fused=True
    ),
    Engine("PyHessian", _pyhessian),
    Engine("lipprof, Gauss-Newton", _lipprof_ggn, matrix="GGN"),
    Engine("curvlinops, Gauss-Newton", partial(_curvlinops, "GGN"), matrix="GGN"),
)
