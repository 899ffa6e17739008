"""The extreme eigenpairs of an operator: by its whole matrix where that is cheaper, or by Lanczos.

Measured (products, 5 + 5 pairs at 1e-3 per end, after 100 steps): LeNet on MNIST 99-121, a 4-layer
GPT 84-91, where one Krylov space without restarts needs 92-113 and 82-87; the five top pairs alone
16-17 and 19-20.  The bottom end, a clustered bulk edge, is what costs.

A start vector changes little.  The previous pairs, summed with random signs and mixed in equal
parts with a random vector, were never dearer on average than a random one (LeNet: 120 products
against 119 one step later, 97 against 115 twenty steps later, 73 against 109 at the same
parameters; GPT: 72 against 79 twenty steps later); a gradient mixed in gave nothing.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.errors import ConfigError, NonfiniteError
from lipprof.linalg.krylov import KrylovBasis
from lipprof.linalg.lanczos import NONFINITE, Lanczos
from lipprof.linalg.memory import default_basis_size
from lipprof.linalg.operator import SymmetricOperator, materialise
from lipprof.linalg.ritz import RitzPairs, measure_explicitly, ritz_pairs

DENSE_LIMIT = 96
"""Up to this n, the n matvecs of the whole matrix cost no more than 5 + 5 pairs by Lanczos do."""


def expected_matvecs(top: int, bottom: int) -> int:
    """Foresee the products that ``eigenpairs`` takes at a tolerance of 1e-3, roughly.

    Args:
        top: number of largest eigenvalues.
        bottom: number of smallest eigenvalues.

    Returns:
        Their number.  Measured on a small CNN and a GPT: 15 to 20 for 5 + 0, 84 to 121 for 5 + 5,
        39 to 42 for 1 + 1.
    """
    if bottom:
        return 24 + 8 * (top + bottom)
    return 8 + 2 * top if top else 0


def eigenpairs(
    op: SymmetricOperator,
    *,
    top: int,
    bottom: int,
    tol: float = 1e-3,
    max_matvecs: int = 300,
    basis_size: int | None = None,
    basis_device: torch.device | str | None = None,
    start: Float[Tensor, " n"] | None = None,
    seek_multiples: bool = False,
    seed: int = 0,
) -> RitzPairs:
    """Compute the ``top`` largest and ``bottom`` smallest eigenpairs.

    Args:
        op: a symmetric operator.
        top: number of largest eigenvalues.
        bottom: number of smallest eigenvalues.
        tol: residual over the extreme eigenvalue of the same end.
        max_matvecs: limit, without those that check the residuals (1, or one per pair).
        basis_size: Lanczos vectors kept; default ``default_basis_size``.  See ``plan_basis``.
        basis_device: where to keep them; default: the operator's.
        start: direction to start from; default: random.
        seek_multiples: look for further copies of the eigenvalues found even if nothing hints at
            any; costs some ten products more and one per pair.
        seed: of random directions and signs.

    Returns:
        top + bottom pairs; those over tolerance are marked.

    Raises:
        ConfigError: no pair, or more pairs than n, asked for; a basis too small for them; a start
            vector without direction.
        NonfiniteError: a matvec returned NaN or infinity.
    """
    pairs = top + bottom
    if min(top, bottom) < 0 or pairs < 1 or pairs > op.n:
        raise ConfigError(
            f"Asked for top={top} and bottom={bottom} eigenpairs of an operator with n={op.n}: "
            f"top + bottom must be between 1 and {op.n}."
        )
    if op.n <= max(DENSE_LIMIT, pairs + 2):
        return _dense(op, top=top, bottom=bottom, tol=tol)
    size = min(basis_size or default_basis_size(pairs), op.n)
    if size < pairs + 2:
        raise ConfigError(
            f"basis_size={size} is too small for {pairs} pairs: use {pairs + 2} or more."
        )
    if start is not None:
        _check_direction(start, op.n)
    basis = KrylovBasis(op, size, device=torch.device(basis_device or op.device), seed=seed)
    basis.insert_direction(start)
    run = Lanczos(basis, top=top, bottom=bottom, tol=tol, seek_multiples=seek_multiples)
    return run.solve(max_matvecs)


def _check_direction(start: Tensor, n: int) -> None:
    if start.shape != (n,) or not bool(start.isfinite().all()) or not bool(start.any()):
        raise ConfigError(
            f"`start` has shape {tuple(start.shape)}: expected a finite vector of {n} entries, "
            "not all zero. Leave it out to start from a random direction."
        )


def _dense(op: SymmetricOperator, *, top: int, bottom: int, tol: float) -> RitzPairs:
    matrix = materialise(op)
    if not matrix.isfinite().all():
        raise NonfiniteError(NONFINITE)
    values, vectors = torch.linalg.eigh(matrix)
    rows = vectors.T.flip(0).to(op.dtype)
    chosen = torch.cat([rows[:top], rows[op.n - bottom :]])
    rayleigh, residuals = measure_explicitly(op, chosen)
    return ritz_pairs(
        rayleigh,
        chosen,
        residuals,
        top=top,
        tol=tol,
        scale=float(values.abs().max()),
        num_matvecs=op.n + len(chosen),
    )
