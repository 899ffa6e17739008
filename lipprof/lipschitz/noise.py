"""How much of an eigenvalue, and of its drift, is the draw of the batch.

The Rayleigh quotients q_bi = v_iᵀ H_b v_i of B further batches at one θ scatter around
v_iᵀ H v_i with a standard deviation σ_i, the noise floor: to first order that is what the
eigenvalue of another batch would differ by, as the vectors are held fixed.  The vectors must not
come from one of the B batches, whose quotient is extreme by selection.

On a fixed probe, the same at both measurements, noise of single batches largely cancels from a
drift Δλ_i = λ_i(t) − λ_i(t−1), and what is left is how far the drift on that probe may be from the
population's.  The same B batches at both measurements give B drifts Δ_b = q_b(t) − q_b(t−1),
independent draws of what the probe drew once, so Var = s²(Δ_b): ``probe_variance``.  That is for a
probe of the size of the B batches; one of s times as many samples has 1/s of the variance
(``size_ratio``; samples drawn independently).  E[(Δλ)²] = (population's drift)² + Var, and the
sample variance is unbiased, so Var/(Δλ)² is the share of the squared drift that batches explain:
``noise_share``, the same definition as the share of probes' noise per tensor.

Cost of the quotients: B Hessian-vector products per pair.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def noise_floor(quotients: Float[Tensor, "B k"]) -> Float[Tensor, " k"]:
    """Estimate the scatter of Rayleigh quotients over batches at one θ.

    The root of the unbiased variance.  For normal quotients its standard error is σ/√(2(B − 1)):
    35 % for B = 5, 16 % for B = 20.

    Args:
        quotients: v_iᵀ H_b v_i, a row per batch.  Unit: loss/param².

    Returns:
        Standard deviation, float64, loss/param².  NaN with fewer than two batches, and for a pair
        with a NaN among its quotients.
    """
    return _variance(quotients).sqrt()


def probe_variance(
    quotients: Float[Tensor, "B k"], previous: Float[Tensor, "B k"], *, size_ratio: float = 1.0
) -> Float[Tensor, " k"]:
    """Variance of a drift that is measured on one fixed probe, around the population's drift.

    Args:
        quotients: v_iᵀ H_b v_i at the later measurement.  Unit: loss/param².
        previous: the same batches at the earlier one, in the same order, with its own vectors;
            column i belongs to the predecessor of pair i, NaN where there is none.
        size_ratio: samples of the probe over samples of one of the B batches.

    Returns:
        Unbiased; float64; unit (loss/param²)².  NaN with fewer than two batches.
    """
    return _variance(quotients.double() - previous.double()) / size_ratio


def noise_share(change: Float[Tensor, " k"], variance: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Share of the squared drift (Δλ_i)² that is expected from batches alone.

    Args:
        change: Δλ_i.  Unit: loss/param².
        variance: from ``probe_variance``.

    Returns:
        0 to 1, float64: 1 where the drift is no larger than its noise.  NaN where either is unknown
        and where both are zero.
    """
    return (variance.double() / change.double().square()).clamp(0, 1)


def _variance(samples: Float[Tensor, "B k"]) -> Float[Tensor, " k"]:
    if len(samples) < 2:
        return torch.full_like(samples[:1].sum(0), torch.nan, dtype=torch.float64)
    return samples.double().var(0)
