"""What a graph takes of memory. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from compiler.placement.facts import GraphFacts, NodeFact
from firmware_profiles.profile import Budget

#: Operators whose output is their input under another shape: no memory of their own.
VIEWS: Final = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "RESHAPE", "EXPAND_DIMS", "SQUEEZE"}
)
MIB: Final = 1024**2


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What the artifact takes, and whether the target has it.

    Attributes:
        weights_bytes: constants, in the artifact's types.
        activations_bytes: the least that holds all tensors alive at once, for one sample.
        budget_bytes: of the profile; 0 where boards differ too much to say.
        over_bytes: how much more than the budget it takes.
        streamed: what is over the budget is fetched again for each inference, so it runs, more slowly.
    """

    weights_bytes: int
    activations_bytes: int
    budget_bytes: int = 0
    over_bytes: int = 0
    streamed: bool = False

    @property
    def fits(self) -> bool:
        """Whether the target can run it, as far as memory goes."""
        return self.over_bytes == 0 or self.streamed


def memory(graph: GraphFacts, budget: Budget) -> Memory:
    """Return what a graph takes, against a budget."""
    activations = peak(graph)
    limit = budget.memory_mib * MIB
    over = max(0, graph.weights_bytes + activations - limit) if limit else 0
    return Memory(
        weights_bytes=graph.weights_bytes,
        activations_bytes=activations,
        budget_bytes=limit,
        over_bytes=over,
        streamed=bool(over) and budget.streamed and activations <= limit,
    )


def peak(graph: GraphFacts) -> int:
    """Return the most bytes of activations alive at one node, in the order in which they run.

    A tensor lives from the node that makes it (an input of the graph from the start) to the last that reads
    it (an output of the graph to the end). The largest sum over the nodes is the *maximum breadth*, the lower
    bound of any allocation that reuses memory (Pisarchyk and Lee, "Efficient Memory Management for Deep
    Neural Net Inference", MLSys 2020). A view shares its input's memory. Tensors of unknown size count
    nothing.
    """
    owner = _owners(graph.nodes)
    sizes: dict[str, int] = {}
    first: dict[str, int] = dict.fromkeys((owner.get(x, x) for x in graph.inputs), 0)
    last: dict[str, int] = {}
    for place, node in enumerate(graph.nodes):
        for tensor in (*node.inputs, *node.outputs):
            if not tensor.name or tensor.constant:
                continue
            name = owner.get(tensor.name, tensor.name)
            sizes[name] = max(sizes.get(name, 0), tensor.size)
            first.setdefault(name, place)
            last[name] = place
    end = len(graph.nodes) - 1
    last.update((name, end) for x in graph.outputs if (name := owner.get(x, x)) in first)
    return _largest_sum(sizes, first, last, len(graph.nodes))


def _owners(nodes: Iterable[NodeFact]) -> Mapping[str, str]:
    """Return for each view the tensor whose memory it shares."""
    owner: dict[str, str] = {}
    for node in nodes:
        if node.operator in VIEWS and node.inputs and not node.inputs[0].constant:
            source = node.inputs[0].name
            owner.update((x.name, owner.get(source, source)) for x in node.outputs)
    return owner


def _largest_sum(
    sizes: Mapping[str, int], first: Mapping[str, int], last: Mapping[str, int], steps: int
) -> int:
    changes = [0] * (steps + 1)
    for name, size in sizes.items():
        changes[first[name]] += size
        changes[last[name] + 1] -= size
    alive, most = 0, 0
    for change in changes:
        alive += change
        most = max(most, alive)
    return most
