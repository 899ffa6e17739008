"""What a checkpoint tells of a measurement to come: sizes and memory, not cost.

Only tensors and plain containers are read (``torch.load(weights_only=True)``): a pickle that needs
code to run is refused.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipprof.errors import ConfigError
from lipprof.profiler.doctor.checks import Check, State
from lipprof.profiler.memory import foreseen_vectors
from lipprof.settings import Settings

_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")


def examine_checkpoint(path: Path, settings: Settings) -> Iterator[Check]:
    """Say what can be said without the model's code.

    Args:
        path: a file written by ``torch.save``.
        settings: of the measurement to be foreseen.

    Yields:
        One line after the other.

    Raises:
        ConfigError: there is no such file, it needs code to be read, or has no tensors.
    """
    tensors = _state_dict(_loaded(path), path)
    floating = {name: t for name, t in tensors.items() if t.is_floating_point()}
    n = sum(tensor.numel() for tensor in floating.values())
    if n == 0:
        raise ConfigError(f"{path} has no tensor of real numbers.")
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in floating.values()})
    yield Check(
        "model",
        State.OK,
        f"at most {n:,} parameters in {len(floating)} tensors ({', '.join(dtypes)}); buffers of "
        "real numbers are among them, and tied weights count as often as they are named.",
    )
    bad = [name for name, tensor in floating.items() if not bool(tensor.isfinite().all())]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        text = f"NaN or infinity in {', '.join(bad[:3])}{more}: nothing can be measured there."
        yield Check("values", State.FAILED, text)
    else:
        yield Check("values", State.OK, "all are finite.")
    dtype = torch.float64 if "float64" in dtypes else torch.float32
    vectors = foreseen_vectors(settings, n, dtype)
    yield Check(
        "memory",
        State.OK,
        f"{(vectors.working + vectors.kept) / 2**20:,.0f} MiB for the vectors of {settings.top} + "
        f"{settings.bottom} pairs ({vectors.rows} Lanczos vectors). What products take, and "
        "how long, depends on the model's code and batch: lipprof doctor -- train.py tells.",
    )


def _loaded(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, for damaged files too
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ConfigError(
            f"{path} cannot be read as tensors alone, and lipprof runs no code from files: "
            f"{reason.partition('. ')[0].rstrip('.')}. Save model.state_dict() instead of the "
            "model."
        ) from None


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The first mapping from names to tensors, at the top or under a usual key."""
    candidates = [content]
    if isinstance(content, Mapping):
        candidates += [content[key] for key in _KEYS if key in content]
    for candidate in candidates:
        if isinstance(candidate, Mapping):
            tensors = {str(k): v for k, v in candidate.items() if isinstance(v, Tensor)}
            if tensors:
                return tensors
    raise ConfigError(
        f"{path} has no state dict, neither at its top nor under {', '.join(map(repr, _KEYS))}."
    )
