"""A loss surface at one point, without a training loop: ``surface``, and ``spectrum`` for short.

``surface`` evaluates the closure once and leaves the model exactly as it was; what is asked of it
shares one operator.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

import lipprof.optim  # noqa: F401 - registers how its optimizers step
from lipprof.curvature import (
    Engine,
    HessianEngine,
    LossClosure,
    ParameterOperator,
    ParameterView,
    PreconditionedOperator,
    ProbeLoss,
    gauss_newton,
    read_preconditioner,
    twice_differentiable,
    undisturbed,
)
from lipprof.errors import ConfigError
from lipprof.linalg import RitzPairs, expected_matvecs
from lipprof.profiler.memory import MemoryShare
from lipprof.profiler.surface import PyHessianSurface, Surface
from lipprof.settings import byte_size


@contextmanager
def surface(
    model: nn.Module,
    loss: LossClosure,
    *,
    probe: Sequence[Any] | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    mode: Literal["eval", "train"] = "eval",
    matrix: Literal["hessian", "ggn"] = "hessian",
    optimizer: torch.optim.Optimizer | None = None,
    engine: Engine | Literal["pyhessian"] = "auto",
    pairs: int = 2,
    planned: int = 50,
    tol: float = 1e-3,
    memory_limit: int | str | None = None,
    check_deterministic: bool = True,
    cuda_graph: bool = False,
    progress: bool | None = None,
    seed: int = 0,
) -> Iterator[Surface]:
    """Look at the loss surface at the present parameters; they must not change meanwhile.

    Args:
        model: its parameters with ``requires_grad`` make up θ (n,), in ``named_parameters`` order.
        loss: ``loss(model)``, or ``loss(model, batch)`` where a probe is given; returns a scalar.
        probe: microbatches, weighted by size.
        reduction: of the closure over a microbatch.
        mode: of the modules meanwhile; in eval mode there is no dropout noise.
        matrix: the Hessian, or the generalised Gauss–Newton matrix.
        optimizer: look as its next step does: at S^½ (H + d) S^½, whose edge of stability is 1
            (``lipprof.curvature.preconditioned``).
        engine: what computes products; ``auto`` picks by timing (``curvature.hessian.engine``),
            ``differences`` needs no second derivative, ``pyhessian`` is a second opinion.
        pairs: eigenpairs that will be asked for: memory is kept free for them.
        planned: products that will be asked for, roughly: a trace must pay within them.
        tol: tolerance that will be asked for: a warning tells where products are too coarse for it.
        memory_limit: bytes beyond the model's, as a number or as ``"4GiB"``.
        check_deterministic: refuse a loss that two evaluations differ in, or an asymmetric matrix.
        cuda_graph: replay traced products on CUDA in one launch (``curvature.hessian.replayed``).
        progress: show a progress line after two seconds; default: where stderr is a terminal.
        seed: of vectors, and of the global generators while the closure runs.

    Yields:
        The surface.

    Raises:
        ConfigError: no parameter, too low a memory limit, or keywords that exclude each other.
        NotDifferentiableError: the loss does not reach a parameter.
        NoSecondDerivativeError: an operator has none, and the engine needs it.
        NondeterministicCurvatureError: the loss changes from evaluation to evaluation.
        NonfiniteError: the loss or a product is NaN or infinite.
    """
    view = ParameterView.of(model)
    closure = ProbeLoss(model, loss, probe, reduction, seed)
    with undisturbed(model, training=mode == "train"), twice_differentiable(model):
        if engine == "pyhessian":
            _require_plain(matrix, optimizer, memory_limit)
            yield PyHessianSurface(closure, view)
            return
        limit = None if memory_limit is None else byte_size(memory_limit)
        memory = MemoryShare(limit, view, pairs, kept_vectors=1)
        source = HessianEngine(
            closure,
            view,
            engine=_engine_for(matrix, engine),
            planned=planned,
            memory_limit=memory.for_products,
            check_deterministic=check_deterministic,
            cuda_graph=cuda_graph,
        )
        yield _surface_of(source, matrix, optimizer, tol, memory=memory, progress=progress)


def _surface_of(
    source: HessianEngine,
    matrix: Literal["hessian", "ggn"],
    optimizer: torch.optim.Optimizer | None,
    tol: float,
    **options: Any,
) -> Surface:
    operator: ParameterOperator = (hessian := source.operator())
    gradient = hessian.gradient()
    source.warn_of_precision(tol)
    if matrix == "ggn":
        del hessian, operator  # their graphs, before others are built
        operator = gauss_newton(source.loss.model, source.loss.terms(), source.view)
    if optimizer is not None:
        preconditioner = read_preconditioner(optimizer, source.view, gradient)
        operator = PreconditionedOperator(operator, preconditioner)
    return Surface(
        operator,
        engine=source.name,
        relative_error=source.relative_error,
        gradient=gradient,
        product_bytes=source.product_bytes,
        seed=source.loss.seed,
        **options,
    )


def _engine_for(matrix: Literal["hessian", "ggn"], engine: Engine) -> Engine:
    """The Gauss-Newton matrix has one engine, which keeps graphs as retained products do."""
    if matrix == "hessian":
        return engine
    if engine not in ("auto", "retained"):
        raise ConfigError(
            f"matrix='ggn' has products over retained graphs only, not engine={engine!r}: leave "
            "engine= out."
        )
    return "retained"


def _require_plain(matrix: str, optimizer: Any, memory_limit: Any) -> None:
    if matrix != "hessian" or optimizer is not None or memory_limit is not None:
        raise ConfigError(
            "engine='pyhessian' has the Hessian only: leave out matrix=, optimizer= and "
            "memory_limit=, or use the default engine."
        )


def spectrum(
    model: nn.Module,
    loss: LossClosure,
    *,
    top: int = 10,
    bottom: int = 10,
    tol: float = 1e-3,
    max_matvecs: int = 1000,
    basis_size: int | None = None,
    **look: Any,
) -> RitzPairs:
    """Compute the top and bottom eigenpairs of a model's loss, once.

    Args:
        model: see ``surface``.
        loss: see ``surface``.
        top: number of largest eigenvalues.
        bottom: number of smallest eigenvalues.
        tol: residual over the extreme eigenvalue of the same end.
        max_matvecs: limit of products.
        basis_size: Lanczos vectors kept, each of n entries.
        look: keywords of ``surface``.

    Returns:
        ``values`` (k,) in falling order, ``vectors`` (k, n), ``residuals`` (k,), ``converged``
        (k,), ``num_matvecs`` and ``status``.

    Raises:
        ConfigError: more pairs than parameters, or what ``surface`` raises, as all its errors.
    """
    asked = {"pairs": top + bottom, "planned": expected_matvecs(top, bottom), "tol": tol}
    with surface(model, loss, **(asked | look)) as seen:
        return seen.eigenpairs(
            top=top, bottom=bottom, tol=tol, max_matvecs=max_matvecs, basis_size=basis_size
        )
