"""Putting a graph's nodes in order: the quantizer appends where ONNX asks for producers before consumers."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator

import onnx


def sort(graph: onnx.GraphProto) -> None:
    """Sort the nodes topologically, in place; among free ones the earlier stays first (Kahn 1962)."""
    nodes = list(graph.node)
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    waits = [{maker[x] for x in _names(node) if x in maker and maker[x] != i} for i, node in enumerate(nodes)]
    feeds: defaultdict[int, list[int]] = defaultdict(list)
    for i, before in enumerate(waits):
        for j in before:
            feeds[j].append(i)
    free = [i for i, before in enumerate(waits) if not before]
    order = []
    while free:
        i = heapq.heappop(free)
        order.append(nodes[i])
        for j in feeds[i]:
            waits[j].discard(i)
            if not waits[j]:
                heapq.heappush(free, j)
    del graph.node[:]
    graph.node.extend(order)


def _names(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads, also from inside its subgraphs."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for child in inner.node:
                yield from _names(child)
