"""The contestants for eigenpairs, and how the peers' stopping rules are set for them.

``eigsh`` and hessian-eigenthings have no rule that says "residual within 1e-3 of the extreme value
of the same end".  They are given what nobody has in practice: the setting that just meets it on
this very problem, found beforehand with products that cost nothing in the table.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import lipprof
from lipprof.linalg import RitzPairs, eigenpairs
from lipprof.linalg.ritz import tolerances
from tests.benchmarks.engines import (
    Engine,
    Product,
    closure_hessian,
    operator_of,
    plain_product,
    pyhessian_of,
)
from tests.benchmarks.problems import Problem, flatten

OURS = "lipprof.spectrum"
TOL = 1e-3
SEED = 0
EIGSH_TOLS = (0.3, 0.1, 0.03, 0.01, 5e-3, 2.5e-3, 1.2e-3, 6e-4, 3e-4, 1e-4, 3e-5)
POWER_TOLS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
POWER_STEPS = 1000
LANCZOS_LENGTHS = (30, 60, 120, 240)


@dataclass(frozen=True, slots=True)
class Found:
    """Eigenpairs as a contestant reports them."""

    values: Tensor  # (k,) falling, float64, CPU
    vectors: Tensor  # (k, n)
    top: int  # how many are of the top end
    products: int
    reported: Tensor | None = None  # residuals (k,), where it reports any


@dataclass(frozen=True, slots=True)
class Judgement:
    """Residuals that were computed, over the extreme value of the same end."""

    worst: float
    reported: float | None  # the worst as reported

    @property
    def meets(self) -> bool:
        return self.worst <= TOL


def judge(found: Found, truth: Product) -> Judgement:
    """Compute the residuals by one product each, the same for all contestants."""
    residuals = []
    for value, vector in zip(found.values.tolist(), found.vectors, strict=True):
        unit = vector.double() / vector.double().norm()
        image = truth(unit.to(vector.dtype)).double()
        residuals.append(float((image - value * unit).norm()))
    unit_of_end = tolerances(found.values, top=found.top, tol=1.0)
    reported = None if found.reported is None else float((found.reported / unit_of_end).max())
    return Judgement(float((torch.tensor(residuals) / unit_of_end).max()), reported)


class Counted:
    """Counts the products that pass."""

    def __init__(self, product: Callable[..., Any]) -> None:
        self.product, self.count = product, 0

    def __call__(self, *arguments: Any) -> Any:
        self.count += 1
        return self.product(*arguments)


class TooManyError(Exception):
    """More products than are worth waiting for."""


class Limited(Counted):
    """Gives up after so many products."""

    def __init__(self, product: Product, limit: int) -> None:
        super().__init__(product)
        self.limit = limit

    def __call__(self, *arguments: Any) -> Any:
        if self.count >= self.limit:
            raise TooManyError
        return super().__call__(*arguments)


def joined(top: Found, bottom: Found) -> Found:
    """Both ends, found one after the other."""
    reported = None
    if top.reported is not None and bottom.reported is not None:
        reported = torch.cat([top.reported, bottom.reported])
    return Found(
        torch.cat([top.values, bottom.values]),
        torch.cat([top.vectors, bottom.vectors]),
        top.top,
        top.products + bottom.products,
        reported,
    )


# ------------------------------------------------------------------ lipprof


def _of_pairs(pairs: RitzPairs) -> Found:
    return Found(pairs.values, pairs.vectors, pairs.top, pairs.num_matvecs, pairs.residuals)


def spectrum(problem: Problem, top: int, bottom: int) -> Found:
    """The one-shot call, with whatever it prepares."""
    return _of_pairs(
        lipprof.spectrum(problem.model, problem.loss, top=top, bottom=bottom, tol=TOL, seed=SEED)
    )


def measurement(
    problem: Problem, backend: Literal["retained", "traced"]
) -> Callable[[int, int], Found]:
    """One of many measurements of a run: traces are at hand, everything else is done anew."""
    hessian = closure_hessian(problem, backend)
    operator_of(problem, hessian)

    def solve(top: int, bottom: int) -> Found:
        operator = operator_of(problem, hessian)
        return _of_pairs(eigenpairs(operator, top=top, bottom=bottom, tol=TOL, seed=SEED))

    return solve


# ------------------------------------------------------------------ scipy


@dataclass(frozen=True, slots=True)
class Arpack:
    """A way to call eigsh."""

    which: str
    pairs: int
    tol: float = 0.0
    ncv: int | None = None

    def solve(self, product: Product, problem: Problem) -> Found:
        from scipy.sparse.linalg import LinearOperator, eigsh

        counted, device = Counted(product), problem.inputs.device

        def matvec(vector: np.ndarray) -> np.ndarray:
            column = torch.as_tensor(vector.reshape(-1), dtype=torch.float32, device=device)
            return counted(column).cpu().numpy()

        start = torch.randn(problem.n, generator=torch.Generator().manual_seed(SEED)).numpy()
        values, vectors = eigsh(
            LinearOperator((problem.n, problem.n), matvec=matvec, dtype=np.float32),
            k=self.pairs,
            which=self.which,
            tol=self.tol,
            ncv=self.ncv,
            v0=start,
        )
        order = np.argsort(-values)
        rows = torch.from_numpy(np.ascontiguousarray(vectors.T[order])).to(device)
        top = {"LA": self.pairs, "SA": 0, "BE": self.pairs // 2}[self.which]
        return Found(torch.from_numpy(values[order]).double(), rows, top, counted.count)


@cache
def calibrated_arpack(problem: Problem, which: str, pairs: int) -> Arpack:
    """The basis and the loosest tolerance that meet the criterion with fewest products."""
    truth, best, fewest = plain_product(problem), None, sys.maxsize
    for ncv in (80, 40, 2 * pairs + 1):  # lipprof's own is 64 or 80
        low, high = 0, len(EIGSH_TOLS)  # between: the first tolerance that meets it
        while low < high:
            middle = (low + high) // 2
            way = Arpack(which, pairs, EIGSH_TOLS[middle], min(ncv, problem.n))
            try:
                found = way.solve(Limited(truth, fewest), problem)
            except TooManyError:  # another basis did better
                break
            if judge(found, truth).meets:
                high = middle
                if found.products < fewest:
                    best, fewest = way, found.products
            else:
                low = middle + 1
    if best is None:
        raise RuntimeError(f"eigsh(which={which!r}) meets the criterion at none of {EIGSH_TOLS}")
    return best


# ------------------------------------------------------------------ hessian-eigenthings


@dataclass(frozen=True, slots=True)
class Eigenthings:
    """A way to call its Lanczos; without restarts, so that the count decides."""

    which: str
    pairs: int
    steps: int

    def solve(self, product: Product, problem: Problem) -> Found:
        from hessian_eigenthings.algorithms.lanczos import lanczos

        counted = Counted(product)
        result = lanczos(
            _eigenthings_operator(counted, problem),
            k=self.pairs,
            max_iter=self.steps,
            reorthogonalize=True,
            which=self.which,
            seed=SEED,
        )
        order = result.eigenvalues.argsort(descending=True)
        return Found(
            result.eigenvalues[order].double().cpu(),
            result.eigenvectors[order],
            self.pairs if self.which == "LA" else 0,
            counted.count,
            result.residuals[order].double().cpu(),
        )


def _eigenthings_operator(product: Product, problem: Problem):
    from hessian_eigenthings.operators.base import LambdaOperator

    return LambdaOperator(product, size=problem.n, device=problem.inputs.device)


@cache
def calibrated_eigenthings(problem: Problem, which: str, pairs: int) -> Eigenthings:
    """The smallest count that meets the criterion: guessed from one long run, then verified."""
    from hessian_eigenthings.algorithms.lanczos import lanczos_tridiagonal

    truth = plain_product(problem)
    start = torch.randn(problem.n, generator=torch.Generator().manual_seed(SEED))
    for length in LANCZOS_LENGTHS:
        run = lanczos_tridiagonal(
            _eigenthings_operator(truth, problem),
            start.to(problem.inputs.device),
            min(length, problem.n),
            reorthogonalize=True,
        )
        alphas, betas = run.alphas.double().cpu(), [*run.betas.tolist(), run.last_beta]
        del run
        for steps in range(pairs + 1, len(alphas) + 1):
            if _estimate_meets(alphas[:steps], betas[:steps], which, pairs):
                way = Eigenthings(which, pairs, steps)
                if judge(way.solve(truth, problem), truth).meets:
                    return way
    raise RuntimeError(f"Lanczos needs more than {LANCZOS_LENGTHS[-1]} steps at the {which} end")


def _estimate_meets(alphas: Tensor, betas: list[float], which: str, pairs: int) -> bool:
    off = torch.tensor(betas[: len(alphas) - 1], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(
        torch.diag(alphas) + torch.diag(off, 1) + torch.diag(off, -1)
    )
    chosen = slice(-pairs, None) if which == "LA" else slice(0, pairs)
    residuals = betas[len(alphas) - 1] * vectors[-1, chosen].abs()
    extreme = values[-1] if which == "LA" else values[0]
    return bool((residuals <= TOL * values[chosen].abs().clamp(min=float(extreme.abs()))).all())


# ------------------------------------------------------------------ PyHessian


@dataclass(frozen=True, slots=True)
class Power:
    """PyHessian's power iteration for the largest eigenvalue."""

    tol: float

    def solve(self, problem: Problem) -> Found:
        module = import_module("pyhessian.hessian")  # its package hides it behind the class
        counted = Counted(module.hessian_vector_product)
        with sdpa_kernel(SDPBackend.MATH), patch.object(module, "hessian_vector_product", counted):
            hessian = pyhessian_of(problem)
            torch.manual_seed(SEED)
            values, vectors = hessian.eigenvalues(maxIter=POWER_STEPS, tol=self.tol, top_n=1)
        problem.model.zero_grad()
        rows = flatten(vectors[0])[None]
        return Found(torch.tensor(values, dtype=torch.float64), rows, 1, counted.count)


@cache
def calibrated_power(problem: Problem) -> Power:
    """The loosest tolerance that meets the criterion, or the tightest one."""
    truth = plain_product(problem)
    for tol in POWER_TOLS[:-1]:
        if judge(Power(tol).solve(problem), truth).meets:
            return Power(tol)
    return Power(POWER_TOLS[-1])


# ------------------------------------------------------------------ contestants

Solve = Callable[[], Found]


def contestants(
    problem: Problem, engines: dict[str, Engine], top: int, bottom: int
) -> dict[str, Callable[[], Solve]]:
    """What prepares each contestant: not timed, and it may raise."""
    ways: dict[str, Callable[[], Solve]] = {
        OURS: lambda: partial(spectrum, problem.copied(), top, bottom)
    }
    for backend in ("retained", "traced"):
        ways[f"lipprof, within a run, {backend}"] = lambda b=backend: partial(
            measurement(problem.copied(), b), top, bottom
        )
    if (top, bottom) == (1, 0):
        ways["PyHessian, default tol"] = lambda: partial(Power(1e-3).solve, problem.copied())
        ways["PyHessian, calibrated tol"] = lambda: partial(
            calibrated_power(problem).solve, problem.copied()
        )
        return ways
    for name, calibrate, ends in (
        ("eigsh {} over curvlinops", calibrated_arpack, "BE"),
        ("eigsh {} over curvlinops", calibrated_arpack, "LA then SA"),
        ("hessian-eigenthings {}", calibrated_eigenthings, "LA then SA"),
    ):
        if not bottom and ends == "BE":
            continue
        engine = engines["curvlinops" if "curvlinops" in name else "hessian-eigenthings"]
        title = name.format(ends if bottom else "LA")
        ways[title] = lambda c=calibrate, e=engine, whole=ends == "BE": _peer(
            problem, c, e, top, bottom, whole=whole
        )
    return ways


def _peer(
    problem: Problem, calibrate: Callable, engine: Engine, top: int, bottom: int, *, whole: bool
) -> Solve:
    copied = problem.copied()
    product = engine.ready(copied)
    product(torch.zeros(copied.n, device=copied.inputs.device))  # fails here if at all
    if whole:
        way = calibrate(problem, "BE", top + bottom)
        return lambda: way.solve(product, copied)
    upper = calibrate(problem, "LA", top)
    if not bottom:
        return lambda: upper.solve(product, copied)
    lower = calibrate(problem, "SA", bottom)
    return lambda: joined(upper.solve(product, copied), lower.solve(product, copied))
