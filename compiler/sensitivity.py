"""Which nodes of a model lose the most when they are quantized. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

#: More nodes than this are looked at in groups first: each look builds and runs a model.
LOOKS: Final = 24


def most_sensitive(
    nodes: Sequence[str], distance: Callable[[tuple[str, ...]], float], keep: int
) -> tuple[str, ...]:
    """Return the nodes whose staying in float brings the model nearest to float, the best first.

    Args:
        nodes: names in the order of the graph.
        distance: how far the model is from float when these nodes are left in float.
        keep: how many to return.
    """
    size = max(1, -(-len(nodes) // LOOKS))
    groups = [tuple(nodes[i : i + size]) for i in range(0, len(nodes), size)]
    ranked = sorted(groups, key=distance)
    if size == 1:
        return tuple(x for group in ranked for x in group)[:keep]
    inner = [x for group in ranked[: max(1, LOOKS // size)] for x in group]
    return most_sensitive(inner, distance, keep)
