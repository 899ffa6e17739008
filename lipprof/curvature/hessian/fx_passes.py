"""Traces of Hessian-vector products: what depends on v, cut from the rest and made cheaper.

A trace is a ``torch.fx`` graph of aten operators with fake tensors in ``node.meta["val"]``; which
values share memory is read off their storages.  Three rewritings pay, measured on a CPU:

1. A B + C in one call (9 % of a transformer's product),
2. results written over operands that nothing needs any more (4 %),
3. costly slopes f'(x), which v does not reach, taken once (up to 5 % with GELU).

The first and the third change rounding, by less than float32 has; lower precisions are left alone.
Merging repeated expressions, equal views and zero summands gained nothing measurable.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
_COSTLY_SLOPES = {
    aten.gelu_backward.default,
    aten.silu_backward.default,
    aten.mish_backward.default,
    aten.softplus_backward.default,
    aten.elu_backward.default,
}
_PRODUCTS: dict[Any, Any] = {
    aten.mm.default: aten.addmm.default,
    aten.bmm.default: aten.baddbmm.default,
}
_COMMUTATIVE = {aten.add.Tensor, aten.mul.Tensor}
_IN_PLACE = {
    aten.add.Tensor: aten.add_.Tensor,
    aten.sub.Tensor: aten.sub_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.mul.Scalar: aten.mul_.Scalar,
    aten.div.Tensor: aten.div_.Tensor,
    aten.div.Scalar: aten.div_.Scalar,
    aten.neg.default: aten.neg_.default,
    aten.addmm.default: aten.addmm_.default,
    aten.baddbmm.default: aten.baddbmm_.default,
}


def dependents(graph: fx.Graph, sources: Iterable[fx.Node]) -> set[fx.Node]:
    """Find the nodes whose values depend on the sources, through arguments or written storages.

    Args:
        graph: the trace.
        sources: nodes of it.

    Returns:
        The sources, what depends on them, and what shares a storage that such a node writes to.
    """
    found = set(sources)
    written: set[int] = set()
    size = -1
    while size != len(found):
        size = len(found)
        for node in graph.nodes:
            if node.op == "call_function" and (
                storages(node) & written or any(n in found for n in node.all_input_nodes)
            ):
                found.add(node)
                written |= written_storages(node)
    return found


def split(
    graph: fx.Graph,
    dependent: set[fx.Node],
    *,
    primal: Sequence[fx.Node | None],
    tangent: Sequence[fx.Node | None],
) -> tuple[fx.Graph, fx.Graph]:
    """Cut a trace into the part that v does not reach and the part that it does.

    Args:
        graph: the trace.
        dependent: its v-dependent nodes.
        primal: the outputs wanted of the first part.
        tangent: the outputs wanted of the second; linear in v, so zero (None) where v does not
            reach them.

    Returns:
        The primal graph, from the other placeholders to (primal outputs, kept values), and the
        tangent graph, from v and the kept values to the tangent outputs.

    Raises:
        ValueError: the tangent part reads a storage that the primal part overwrites later.
    """
    _check_order(graph, dependent)
    kept = [
        node
        for node in graph.nodes
        if node not in dependent
        and node.op != "get_attr"
        and any(user in dependent for user in node.users)
    ]
    first, second = fx.Graph(), fx.Graph()
    into_first: dict[fx.Node, fx.Node] = {}
    into_second: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and node in dependent:
            into_second[node] = second.node_copy(node)
    for node in kept:
        into_second[node] = second.placeholder(node.name)
        into_second[node].meta = dict(node.meta)
    for node in graph.nodes:
        if node.op == "get_attr":
            into_second[node] = second.node_copy(node)
        if node not in dependent and node.op != "output":
            into_first[node] = first.node_copy(node, into_first.__getitem__)
        elif node.op == "call_function":
            into_second[node] = second.node_copy(node, into_second.__getitem__)
    wanted = [None if node is None else into_first[node] for node in primal]
    first.output((wanted, [into_first[node] for node in kept]))
    second.output([into_second[node] if node in dependent else None for node in tangent])
    return first, second


def _check_order(graph: fx.Graph, dependent: set[fx.Node]) -> None:
    read: set[int] = set()
    for node in graph.nodes:
        if node in dependent:
            read |= {s for argument in node.all_input_nodes for s in storages(argument)}
        elif written_storages(node) & read:
            raise ValueError(f"{node.target} overwrites a tensor that the products read before.")


def prune(graph: fx.Graph) -> None:
    """Remove what no output needs; operators that write or draw random numbers stay."""

    def stays(node: fx.Node) -> bool:
        if node.op in ("placeholder", "output"):
            return True
        return isinstance(node.target, torch._ops.OpOverload) and (
            node.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags
        )

    graph.eliminate_dead_code(stays)


def storages(node: fx.Node) -> set[int]:
    """Identities of the storages that a node's value lives in."""
    value = node.meta.get("val")
    items = value if isinstance(value, list | tuple) else [value]
    return {item.untyped_storage()._cdata for item in items if isinstance(item, Tensor)}


def written_storages(node: fx.Node) -> set[int]:
    """Identities of the storages that a node changes."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return set()
    found = set()
    for place, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            for item in given if isinstance(given, list | tuple) else [given]:
                if isinstance(item, fx.Node):
                    found |= storages(item)
    return found


def simplify(graph: fx.Graph, tangents: Sequence[fx.Node]) -> None:
    """Rewrite a trace in place so that its v-dependent part does less.

    Args:
        graph: the trace.
        tangents: the placeholders that stand for v.
    """
    written = {storage for node in graph.nodes for storage in written_storages(node)}
    dependent = dependents(graph, tangents)
    for node in list(graph.nodes):
        if node not in dependent or not _is_precise(node):
            continue
        if any(storages(n) & written for n in (node, *node.all_input_nodes)):
            continue
        with graph.inserting_before(node):
            cheaper = _slope_taken_once(node, dependent) or _sum_with_product(node, dependent)
        if cheaper is not None and _layout(cheaper) == _layout(node):
            cheaper.meta["val"] = node.meta["val"]  # whose storage its views know
            node.replace_all_uses_with(cheaper)
            dependent.add(cheaper)
    prune(graph)


def _is_precise(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float64)


def _slope_taken_once(node: fx.Node, dependent: set[fx.Node]) -> fx.Node | None:
    """f'(x) t, where only t depends on v."""
    if node.target not in _COSTLY_SLOPES or any(n in dependent for n in node.all_input_nodes[1:]):
        return None
    ones = _insert(node.graph, aten.ones_like.default, node.args[1])
    slope = _insert(node.graph, node.target, ones, *node.args[1:], **node.kwargs)
    return _insert(node.graph, aten.mul.Tensor, node.args[0], slope)


def _sum_with_product(node: fx.Node, dependent: set[fx.Node]) -> fx.Node | None:
    """A B + C, with C read once instead of A B written and read again."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    for product, other in (node.args[:2], node.args[1::-1]):
        fused = _PRODUCTS.get(product.target) if isinstance(product, fx.Node) else None
        if fused is None or product not in dependent or len(product.users) > 1:
            continue
        if isinstance(other, fx.Node) and _layout(other)[2:] == _layout(node)[2:]:
            return _insert(node.graph, fused, other, *product.args)
    return None


def _insert(graph: fx.Graph, target: Any, *arguments: Any, **keywords: Any) -> fx.Node:
    node = graph.call_function(target, arguments, keywords)
    args, kwargs = fx.map_arg((arguments, keywords), lambda argument: argument.meta["val"])
    node.meta["val"] = target(*args, **kwargs)
    return node


def _layout(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta["val"]
    return value.shape, value.stride(), value.dtype, value.device


def reuse_storages(graph: fx.Graph) -> None:
    """Write sums and products over an operand that nothing needs any more.

    Args:
        graph: rewritten in place; its placeholders are never written to.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    last_use: dict[int, int] = {}
    for node in graph.nodes:
        final = max((order[user] for user in node.users), default=order[node])
        if node.op != "call_function":
            final = len(order)  # not ours to overwrite
        for storage in storages(node):
            last_use[storage] = max(final, last_use.get(storage, 0))
    home: dict[int, int] = {}  # where a result lives that was written over an operand
    for node in graph.nodes:
        for place in _overwritable(node):
            choice = node.args[place]
            others = [n for n in node.all_input_nodes if n is not choice]
            target = {home.get(s, s) for s in storages(choice)}
            apart = all(not target & {home.get(s, s) for s in storages(n)} for n in others)
            if apart and all(last_use[storage] <= order[node] for storage in target):
                node.target = _IN_PLACE[node.target]
                node.args = (choice, *node.args[:place], *node.args[place + 1 :])
                (own,), (kept,) = storages(node), target
                home[own], last_use[kept] = kept, last_use[own]
                break


def _overwritable(node: fx.Node) -> Iterator[int]:
    """Places of operands that have just the layout of the result and fill their storage."""
    if node.target in _IN_PLACE:
        either = node.target in _COMMUTATIVE and not node.kwargs
        for place in (0, 1) if either else (0,):
            choice = node.args[place]
            if isinstance(choice, fx.Node) and _layout(choice) == _layout(node):
                value: Tensor = choice.meta["val"]
                filled = value.untyped_storage().nbytes() == value.numel() * value.itemsize
                if filled and aten.is_non_overlapping_and_dense(value):
                    yield place
