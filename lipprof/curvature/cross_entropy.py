"""Cross-entropy as a loss head in closed form, so that large vocabularies fit.

Every cross-entropy, with class weights, label smoothing, soft targets or ignored rows, is
Σᵢ Σ_c −T_ic log p_ic, linear in log p.  Its Hessian in the logits knows the targets only through
the total weight tᵢ = Σ_c T_ic of a row:

    (H u)ᵢ = tᵢ (pᵢ ⊙ uᵢ − pᵢ (pᵢ·uᵢ)),      p = softmax(z),

positive semidefinite, and made of the logits that the network holds anyway.  Double backward
through ``log_softmax`` keeps several copies of them.

``recorded_cross_entropies`` finds the calls while a loss is evaluated, wherever they are, also
inside a model that returns its own loss.  ``F.nll_loss`` counts where its input is a
``log_softmax``: the logits are then the input of that.

Cost of a product: two passes over logits and u, and two temporaries of CHUNK entries.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

CHUNK = 1 << 22
"""Entries of the logits that are in work at a time: 16 MiB in float32."""


@dataclass(frozen=True, slots=True)
class CrossEntropyCall:
    """One cross-entropy of a loss."""

    edge: GradientEdge  # of the logits
    logits: Tensor  # (N, C, ...) or (C,), detached; or log-probabilities, which are logits too
    row_weights: Tensor  # t, (N, ...) or (): of each row in the call's result, or in its own entry
    result: GradientEdge  # of the call: a scalar, or one entry per row


@contextmanager
def recorded_cross_entropies() -> Iterator[list[CrossEntropyCall]]:
    """Note every cross-entropy whose logits have a graph.

    Yields:
        The calls, a list that grows.
    """
    recorder = _Recorder()
    with recorder:
        yield recorder.calls


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[CrossEntropyCall] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],  # noqa: ARG002
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in {F.cross_entropy, F.nll_loss}:
            bound = inspect.signature(func).bind(*args, **(kwargs or {}))
            bound.apply_defaults()
            edge = _logits_edge(func, bound.arguments["input"])
            if edge is not None and result.requires_grad and _is_plain(bound.arguments):
                self.calls.append(_noted(edge, bound.arguments, result))
        return result


class CrossEntropyHead:
    """Σ_j c_j · call_j as a function of the calls' logits: its Hessian is block-diagonal."""

    def __init__(self, calls: Sequence[CrossEntropyCall], coefficients: Sequence[Tensor]) -> None:
        self._blocks = [
            _SoftmaxHessian(call.logits, call.row_weights * coefficient)
            for call, coefficient in zip(calls, coefficients, strict=True)
        ]

    def vector_product(self, vectors: Sequence[Tensor]) -> list[Tensor | None]:
        """H_head u, one tensor for each of the calls' logits."""
        return [block.product(u) for block, u in zip(self._blocks, vectors, strict=True)]


class _SoftmaxHessian:
    def __init__(self, logits: Tensor, row_weights: Tensor) -> None:
        self._logits = logits if logits.ndim > 1 else logits.unsqueeze(0)  # classes are dim 1
        self._dtype = torch.promote_types(logits.dtype, torch.float32)
        size = max(1, CHUNK * len(self._logits) // max(1, logits.numel()))
        self._chunks = [slice(at, at + size) for at in range(0, len(self._logits), size)]
        self._normaliser = [
            self._logits[chunk].to(self._dtype).logsumexp(1, keepdim=True) for chunk in self._chunks
        ]
        rows = self._logits[:, :1].shape
        self._weights = row_weights.to(self._dtype).reshape(rows)

    def product(self, vector: Tensor) -> Tensor:
        vectors = vector.reshape(self._logits.shape)
        product = torch.empty_like(vectors)
        for chunk, normaliser in zip(self._chunks, self._normaliser, strict=True):
            p = (self._logits[chunk].to(self._dtype) - normaliser).exp_()
            weighted = p * vectors[chunk]
            centre = p.mul_(weighted.sum(1, keepdim=True))
            product[chunk] = weighted.sub_(centre).mul_(self._weights[chunk])
        return product.reshape(vector.shape)


def _logits_edge(func: Callable[..., Any], scores: Tensor) -> GradientEdge | None:
    node = scores.grad_fn
    if node is None:
        return None
    if func is F.cross_entropy:
        return get_gradient_edge(scores)
    dim = min(1, scores.ndim - 1)
    if node.name() != "LogSoftmaxBackward0":
        return None
    saved = node._saved_dim  # pyright: ignore[reportAttributeAccessIssue]
    if _signed(saved) % scores.ndim != dim:
        return None
    following, output = node.next_functions[0]
    return None if following is None else GradientEdge(following, output)


def _is_plain(given: Mapping[str, Any]) -> bool:
    """Neither with arguments that torch deprecates, nor with targets that are computed."""
    deprecated = given["size_average"] is not None or given["reduce"] is not None
    return not deprecated and not given["target"].requires_grad


def _signed(size: int) -> int:
    """Undo what torch does to a negative dimension in a node's saved attributes."""
    return size - (1 << 64) if size >= 1 << 63 else size


def _noted(edge: GradientEdge, given: Mapping[str, Any], result: Tensor) -> CrossEntropyCall:
    logits, target = given["input"].detach(), given["target"]
    classes = logits.shape[min(1, logits.ndim - 1)]
    precision = torch.promote_types(logits.dtype, torch.float32)  # rows are counted in it
    if given["weight"] is None:
        weight = torch.ones(classes, dtype=precision, device=logits.device)
    else:
        weight = given["weight"].to(precision)
    smoothing = given.get("label_smoothing", 0.0)
    if target.shape == logits.shape:
        mass = _of_distributions(target, weight, smoothing)
        counted = torch.ones_like(mass)
    else:
        mass, counted = _of_labels(target, weight, smoothing, given["ignore_index"])
    if given["reduction"] == "mean":
        mass = mass / counted.sum()
    return CrossEntropyCall(
        edge=edge, logits=logits, row_weights=mass, result=get_gradient_edge(result)
    )


def _of_labels(
    target: Tensor, weight: Tensor, smoothing: float, ignored: int
) -> tuple[Tensor, Tensor]:
    """The total weight of each row, and what it counts for in a mean; both like ``target``."""
    valid = target != ignored
    counted = weight[target.where(valid, 0).long()] * valid
    return (1 - smoothing) * counted + smoothing * weight.mean() * valid, counted


def _of_distributions(target: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    """The total weight of each row, (N, ...) or ()."""
    dim = min(1, target.ndim - 1)
    weighted = torch.tensordot(target.movedim(dim, -1), weight.to(target.dtype), dims=1)
    return (1 - smoothing) * weighted + smoothing * weight.mean()
