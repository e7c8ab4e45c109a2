"""Which nodes to leave in float where quantizing everything loses too much. Pure.

Each node is judged by the noise that its quantization alone puts into the outputs. Judged the other way, by
what leaving it in float wins back, the second of two bad nodes would hide the first. Noise of independent
sources adds up, so the sum over the nodes that stay quantized foretells what is left of the signal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from compiler.candidates import Candidate
from compiler.errors import NothingQuantizedError

#: Signal-to-noise ratios that are aimed at, in dB: each gives one choice of nodes, the boldest first.
AIMS: Final = (14.0, 20.0, 26.0, 34.0)
#: Parts that the nodes are first looked at in, as each look builds and runs a model.
PARTS: Final = 24
#: How many nodes are looked at one by one.
SINGLE: Final = 48

Nodes = tuple[str, ...]


def variants(
    best: Candidate, nodes: Sequence[str], distance: Callable[[Candidate], float]
) -> list[Candidate]:
    """Return variants of a candidate whose most sensitive nodes stay in float, fewer nodes first.

    Args:
        best: the candidate.
        nodes: those that it quantizes, in the order of the graph.
        distance: how far from float is what becomes of a candidate: its signal-to-noise ratio in dB, negated.
    """

    def alone(quantized: Nodes) -> float:
        rest = tuple(x for x in nodes if x not in quantized)
        try:
            return -distance(left(best, rest))
        except NothingQuantizedError:
            return math.inf

    return [left(best, x) for x in choices(nodes, alone)]


def left(candidate: Candidate, nodes: Nodes) -> Candidate:
    """Return the candidate that leaves these nodes in float, too."""
    name = f"{candidate.name}-float{len(nodes)}"
    return msgspec.structs.replace(candidate, name=name, left_float=(*candidate.left_float, *nodes))


def choices(nodes: Sequence[str], alone: Callable[[Nodes], float]) -> list[Nodes]:
    """Return which nodes to leave in float, one choice per aim and each once, fewer nodes first.

    Args:
        nodes: those that can be quantized, in the order of the graph.
        alone: signal-to-noise ratio, in dB, of the model in which only these nodes are quantized.
    """
    noises = _noises(nodes, alone)
    ranked = sorted(noises, key=lambda x: (-noises[x], nodes.index(x[0])))
    found: dict[Nodes, None] = {}
    for aim in AIMS:
        rest = sum(noises.values())
        left: list[str] = []
        for group in ranked:
            if rest <= 10 ** (-aim / 10):
                break
            left += group
            rest -= noises[group]
        if 0 < len(left) < len(nodes):
            found[tuple(left)] = None
    return list(found)


def _noises(nodes: Sequence[str], alone: Callable[[Nodes], float]) -> dict[Nodes, float]:
    """Return the noise of single nodes, or of neighbours together where that is little."""
    size = max(1, -(-len(nodes) // PARTS))
    groups = [tuple(nodes[i : i + size]) for i in range(0, len(nodes), size)]
    noises = {x: 10 ** (-alone(x) / 10) for x in groups}
    if size == 1:
        return noises
    for group in sorted(groups, key=lambda x: -noises[x])[: SINGLE // size]:
        del noises[group]
        noises.update({(x,): 10 ** (-alone((x,)) / 10) for x in group})
    return noises
