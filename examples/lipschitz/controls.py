"""What EigenARC would say of a surface on which L⁺ = L⁻ is known.

λ and γ of both ends are taken from a trial, measurement by measurement, and the loss is replaced by
Σ −γᵢ x + λᵢ x²/2 + L |x|³/6 with one constant L for both: the pessimistic model itself (eq. 3).  An
unbiased estimator says L⁺ = L⁻ = L on it.
"""

import numpy as np
import torch

from examples.lipschitz.trials import Series
from lipprof.lipschitz import EigenARC, pessimistic_model


def eigenarc_on_equal(curvature: Series, slope: Series, lipschitz: float) -> Series:
    """Run Alg. 3 on it.

    Args:
        curvature: λ, (M, 2).
        slope: γ, (M, 2).
        lipschitz: L of both.

    Returns:
        EigenARC's L, (M, 2); NaN where λ or γ is.
    """
    estimator = EigenARC()
    found = np.full(curvature.shape, np.nan)
    for i in range(len(curvature)):
        pair = {"slope": torch.tensor(slope[i]), "curvature": torch.tensor(curvature[i])}
        if not all(numbers.isfinite().all() for numbers in pair.values()):
            continue

        def loss_along(x: torch.Tensor, pair: dict[str, torch.Tensor] = pair) -> float:
            model = pessimistic_model(x, **pair, lipschitz=torch.full_like(x, lipschitz))
            return 1 + float(model.sum())

        found[i] = estimator.update(
            loss_along, loss=1.0, slope=pair["slope"], curvature=pair["curvature"]
        ).lipschitz.numpy()
    return found
