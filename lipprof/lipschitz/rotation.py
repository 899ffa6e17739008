"""How far eigenvectors turn between measurements: principal angles, and ‖V(θ) − V(φ)‖₂ for L_R.

The paper's L_R bounds ‖V(θ) − V(φ)‖₂ ≤ L_R ‖θ − φ‖, but V is only given up to a sign per vector and
up to a rotation per cluster of equal eigenvalues.  So each group of matched pairs is first turned
onto its predecessor by the orthogonal factor of V_C V_C′ᵀ (Procrustes; the sign, for single pairs),
which leaves the least distance there is.

Everything needs the k×k matrix of overlaps and one more pass over both bases, which sums
(Q V − P V′)(Q V − P V′)ᵀ itself by blocks: from the overlaps alone small angles are lost in
cos α ≈ 1 − α²/2, below 1e-8 in float64 and 5e-4 in float32.  This way it is the rounding of the
vectors that limits them, 1e-15 and 1e-6.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lipprof.lipschitz.tracking import Event, Matching, blocks, overlaps


def principal_angles(
    vectors: Float[Tensor, "k n"], previous: Float[Tensor, "j n"]
) -> Float[Tensor, " m"]:
    """Angles between the spans of two bases, basis independent; one end of the spectrum at a time.

    With V V′ᵀ = Q diag(cos α) Pᵀ (Björck and Golub, 1973) the singular values of Qᵀ V − Pᵀ V′ are
    the chords 2 sin(α/2), whichever basis the SVD chose among nearly equal cosines.

    Args:
        vectors: orthonormal rows.
        previous: the same at the last measurement; their number may differ.

    Returns:
        min(k, j) angles from the smallest up, 0 to π/2, radian; float64, on the CPU.  All NaN if
        a vector is.

    Raises:
        ShapeError: the vectors have different lengths.
    """
    products = overlaps(vectors, previous).nan_to_num()
    left, _, right = torch.linalg.svd(products, full_matrices=False)
    chord = _chords(vectors, previous, left.T, right)
    return 2 * torch.asin((chord / 2).clamp(max=0.5**0.5)).cpu()


def basis_change(
    vectors: Float[Tensor, "k n"], previous: Float[Tensor, "j n"], matching: Matching
) -> float:
    """‖V(θ) − V(φ)‖₂ over the matched pairs, after each group is turned onto its predecessor.

    Pairs whose cluster has split, merged or changed in number have no predecessor of their own and
    are left out.

    Args:
        vectors: orthonormal rows.
        previous: the same at the last measurement.
        matching: of the two.

    Returns:
        0 to 2, no unit.  NaN where no pair is left, or a vector is NaN.

    Raises:
        ShapeError: the vectors have different lengths.
    """
    products = overlaps(vectors, previous).nan_to_num()
    comparable = matching.found & (matching.event != Event.REGROUPED)
    if not comparable.any():
        return float("nan")
    turn = torch.zeros_like(products)
    for group in matching.group[comparable].unique():
        rows = (matching.group == group).nonzero()[:, 0].to(products.device)
        columns = matching.source.to(products.device)[rows]
        block = torch.meshgrid(rows, columns, indexing="ij")
        left, _, right = torch.linalg.svd(products[block])
        turn[block] = left @ right
    kept = comparable.to(products.device).nonzero()[:, 0]
    select = torch.eye(len(vectors)).to(products)[kept]
    return float(_chords(vectors, previous, select, turn[kept])[-1])


def rotation_lipschitz(change: float, distance: float) -> float:
    """L_R as seen between two measurements: ‖V(θ) − V(φ)‖₂ / ‖θ − φ‖₂, a lower bound of it.

    Args:
        change: from ``basis_change``.
        distance: ‖θ − φ‖₂; param.

    Returns:
        L_R; unit 1/param.  NaN where the change is unknown or nothing moved.
    """
    return change / distance if distance > 0 else float("nan")


def _chords(vectors: Tensor, previous: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Singular values of left V − right V′, from the smallest up."""
    gram = torch.zeros(len(left), len(left)).to(left)
    for now, before in blocks(vectors, previous):
        part = left.to(now) @ now - right.to(before) @ before
        gram += (part @ part.T).double()
    if not gram.isfinite().all():
        return gram.new_full((len(gram),), torch.nan)
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
