"""Where the nodes of a compiled graph run: the compiler's own word for each. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from compiler.placement.facts import GraphFacts, NodeFact, TensorFact
from compiler.placement.rules import Decision, Unit
from compiler.placement.summary import MEASURED, Placement, summarise
from compiler.qnn.compiling import Operator
from firmware_profiles.profile import Profile

_SOURCE: Final = "the HTP compiler's trace"
#: What ONNX Runtime appends to the names of nodes that it makes anew.
_RENAMED: Final = re.compile(r"_token_\d+$")


def placement(profile: Profile, graph: GraphFacts, operators: Sequence[Operator]) -> Placement:
    """Return the placement of a graph that was compiled with the fallback to the CPU disabled: all or none.

    Args:
        profile: of the target.
        graph: that was compiled.
        operators: of the binary.
    """
    made = {_RENAMED.sub("", name): x.operator for x in operators for name in x.nodes}
    decisions = [
        Decision(unit=Unit.ACCELERATOR, rule=_rule(made.get(x.name, "")), source=_SOURCE) for x in graph.nodes
    ]
    found = summarise(profile, _halved(graph), decisions, profile.accelerator.name, MEASURED)
    needed = (found.memory.weights_bytes + found.memory.activations_bytes) / 1024
    notes = (
        f"{len(operators)} HTP operators, by the compiler's own trace",
        f"{needed:,.0f} KiB of tensors pass through {profile.accelerator.vtcm_mib} MiB of VTCM",
        profile.placement.note,
    )
    return msgspec.structs.replace(found, note="; ".join(notes))


def _rule(operator: str) -> str:
    return f"became {operator}" if operator else "folded into another operator"


def _halved(graph: GraphFacts) -> GraphFacts:
    """Return the graph as the HTP computes it: floats are float16."""
    floats = {x.name: x.size for node in graph.nodes for x in node.inputs if x.constant and x.dtype == "FP32"}

    def half(tensor: TensorFact) -> TensorFact:
        return msgspec.structs.replace(tensor, dtype="FP16") if tensor.dtype == "FP32" else tensor

    def node(fact: NodeFact) -> NodeFact:
        inputs = tuple(map(half, fact.inputs))
        return msgspec.structs.replace(
            fact,
            inputs=inputs,
            outputs=tuple(map(half, fact.outputs)),
            weight_bytes=sum(x.size for x in inputs if x.constant),
        )

    weights = graph.weights_bytes - sum(floats.values()) // 2
    return msgspec.structs.replace(graph, nodes=tuple(map(node, graph.nodes)), weights_bytes=weights)
