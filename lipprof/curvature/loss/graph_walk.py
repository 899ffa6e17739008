"""Walks over torch's autograd graph, from results towards the leaves."""

from collections.abc import Container, Iterable, Iterator

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

Place = tuple[Node, int]
"""Where a tensor stands in the graph: the node that made it, and which of its results it is."""


def place_of(tensor: Tensor) -> Place:
    """Where a differentiable tensor stands."""
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def places_before(place: Place) -> list[Place]:
    """What the node of a place was computed from."""
    return [(node, output) for node, output in place[0].next_functions if node is not None]


def walk(starts: Iterable[Place], stops: Container[Place]) -> tuple[list[Place], set[Node]]:
    """Follow the graph towards its leaves, not beyond ``stops``.

    Args:
        starts: where to begin.
        stops: where to end.

    Returns:
        The stops that were reached, and the nodes that were passed on the way.
    """
    reached: dict[Place, None] = {}
    passed: set[Node] = set()
    queue = list(starts)
    while queue:
        place = queue.pop()
        if place in stops:
            reached[place] = None
        elif place[0] not in passed:
            passed.add(place[0])
            queue.extend(places_before(place))
    return list(reached), passed


def graph_nodes(tensors: Iterable[Tensor]) -> Iterator[Node]:
    """All nodes behind tensors, each once."""
    queue = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(queue)
    while queue:
        node = queue.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)
