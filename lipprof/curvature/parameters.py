"""The profiled parameters as one flat vector, in ``named_parameters()`` order."""

import re
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lipprof.errors import ConfigError, ShapeError

_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")


class ParameterView:
    """Names, tensors and their places in the flat vector θ (n,).

    Vectors have at least float32: a model in bfloat16 is differentiated as it is, but the
    eigensolver works on float32 vectors.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        named = list(named_parameters)
        if not named:
            raise ConfigError(
                "No parameter to profile: none has requires_grad=True (and, where an optimizer is "
                "given, belongs to it). Check for a frozen model or an optimizer of another model."
            )
        self.names = tuple(plain_name(name) for name, _ in named)
        _check_initialised(named)
        self.parameters = tuple(parameter for _, parameter in named)
        self.numel = tuple(parameter.numel() for parameter in self.parameters)
        self.n = sum(self.numel)
        self.device = self._common_device()
        self.dtype = self._vector_dtype()

    @classmethod
    def of(
        cls, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> "ParameterView":
        """View the trainable parameters of a model; tied ones count once.

        Args:
            model: the model.
            optimizer: when given, only parameters that it steps.

        Returns:
            The view.

        Raises:
            ConfigError: there is none, or they are on several devices, complex or sparse.
        """
        stepped = None
        if optimizer is not None:
            stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return cls(
            (name, parameter)
            for name, parameter in plain_model(model).named_parameters()
            if parameter.requires_grad and (stepped is None or id(parameter) in stepped)
        )

    def flatten(self, tensors: Sequence[Tensor]) -> Float[Tensor, " n"]:
        """Concatenate one tensor per parameter, dense or sparse, to a new vector of ``dtype``."""
        return torch.cat([
            tensor.detach().to_dense().reshape(-1).to(self.dtype) for tensor in tensors
        ])

    def split(self, flat: Float[Tensor, " n"]) -> list[Tensor]:
        """Cut a flat vector into tensors of the parameters' shapes and dtypes.

        Args:
            flat: the vector.

        Returns:
            Views of ``flat`` where the dtype allows.

        Raises:
            ShapeError: the vector has not n entries.
        """
        if flat.shape != (self.n,):
            raise ShapeError(
                f"Expected a vector of n={self.n} entries, got shape {tuple(flat.shape)}."
            )
        return [
            part.view(parameter.shape).to(parameter.dtype)
            for part, parameter in zip(flat.split(self.numel), self.parameters, strict=True)
        ]

    def snapshot(self) -> Float[Tensor, " n"]:
        """Copy θ."""
        return self.flatten(self.parameters)

    @property
    def rounding(self) -> float:
        """Relative rounding of θ and, where a loss computes in the same dtype, of f."""
        return max(torch.finfo(parameter.dtype).eps for parameter in self.parameters)

    def _common_device(self) -> torch.device:
        name_on = {p.device: name for p, name in zip(self.parameters, self.names, strict=True)}
        if len(name_on) > 1:
            places = ", ".join(f"{name!r} on {device}" for device, name in name_on.items())
            raise ConfigError(
                f"The parameters are on several devices ({places}); lipprof needs them on one. "
                "Move the model, or freeze the others (requires_grad_(False))."
            )
        (device,) = name_on
        if device.type == "meta":
            raise ConfigError(
                "The parameters are on the meta device and hold no values. Load or initialise the "
                "model first (to_empty, load_state_dict(assign=True))."
            )
        return device

    def _vector_dtype(self) -> torch.dtype:
        dtype = torch.float32
        for name, parameter in zip(self.names, self.parameters, strict=True):
            dense = parameter.layout is torch.strided
            if not (dense and parameter.dtype.is_floating_point and parameter.dtype.itemsize > 1):
                raise ConfigError(
                    f"Parameter {name!r} is {parameter.dtype} with layout {parameter.layout}; "
                    "lipprof profiles dense real parameters of 16 bits or more. Freeze it "
                    "(requires_grad_(False))."
                )
            dtype = torch.promote_types(dtype, parameter.dtype)
        return dtype


def _check_initialised(named_parameters: Iterable[tuple[str, Tensor]]) -> None:
    for name, parameter in named_parameters:
        if is_lazy(parameter):
            raise ConfigError(
                f"Parameter {name!r} of a lazy module has no shape yet. Run one forward pass first."
            )


def plain_model(model: nn.Module) -> nn.Module:
    """What the wrappers of compilation and data parallelism hold, for its names."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def plain_name(name: str) -> str:
    """Strip what compilation, sharding and checkpointing wrappers put into parameter names."""
    return _WRAPPERS.sub("", f".{name}").lstrip(".")
