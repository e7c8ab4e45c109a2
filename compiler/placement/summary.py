"""Where an artifact runs on its target: what a backend answers, and the report shows. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from compiler.placement.facts import GraphFacts, NodeFact
from compiler.placement.memory import Memory, memory
from compiler.placement.rules import Decision, Unit, decide
from firmware_profiles.profile import Profile

#: On what a placement stands: the runtime told; rules that somebody stated; experience that promises nothing.
MEASURED: Final = "measured by the runtime"
RULES: Final = "rules"
ESTIMATED: Final = "estimated"

#: Operators that only change the number format.
CONVERSIONS: Final = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "QUANTIZE", "DEQUANTIZE", "CAST"}
)
_PRECISIONS: Final = {
    "INT4": "int4",
    "UINT4": "int4",
    "INT8": "int8",
    "UINT8": "int8",
    "INT16": "int16",
    "UINT16": "int16",
    "FP8": "float8",
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP32": "float32",
    "FP64": "float64",
}
_CONVERSION: Final = "conversion"
_OTHER: Final = "other"


class Elsewhere(msgspec.Struct, frozen=True, kw_only=True):
    """What another accelerator of the same chip would do with a node.

    Attributes:
        unit: such as "DLA".
        takes: whether it takes the node.
        rule: what decided, in words.
        source: where the rule comes from.
    """

    unit: str
    takes: bool
    rule: str
    source: str = ""


class NodePlacement(msgspec.Struct, frozen=True, kw_only=True):
    """Where one node runs.

    Attributes:
        unit: "accelerator", "cpu" or "refused".
        precision: number format that it computes in, "conversion", or "other" (indices, truth values).
        macs: multiply-accumulates for one sample; None where they cannot be told.
        weight_bytes: of its constants.
        rule: what decided, in words; "" where the runtime itself told.
        source: where the rule comes from.
        sure: no condition was left for people to judge.
        elsewhere: what the chip's other accelerators would do with it.
    """

    name: str
    operator: str
    unit: str
    precision: str
    macs: int | None
    weight_bytes: int
    rule: str = ""
    source: str = ""
    sure: bool = True
    elsewhere: tuple[Elsewhere, ...] = ()


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where the nodes of an artifact run.

    Attributes:
        device: what runs them, or most of them.
        basis: "measured by the runtime", "rules" or "estimated".
        operators: how many nodes there are.
        by_precision: how many compute in which number format.
        float_operators: types of those that compute in float, with their counts.
        macs: multiply-accumulates for one sample, of the nodes where they can be told.
        uncounted: nodes where they cannot.
        accelerated_nodes, accelerated_macs: shares on the accelerator; None where the target has only a CPU.
        memory: what the artifact takes, against the profile's budget.
        nodes: each of them, in the order in which they run.
        note: what to know about it.
    """

    device: str
    basis: str
    operators: int
    by_precision: dict[str, int]
    float_operators: dict[str, int]
    macs: int
    uncounted: int
    accelerated_nodes: float | None
    accelerated_macs: float | None
    memory: Memory
    nodes: tuple[NodePlacement, ...]
    note: str = ""

    def units(self) -> dict[str, int]:
        """Return how many nodes each unit has."""
        return dict(sorted(Counter(x.unit for x in self.nodes).items()))


def by_rules(profile: Profile, graph: GraphFacts, *, unit: str = "", note: str = "") -> Placement:
    """Return where the profile's rules say that a graph runs.

    Args:
        profile: with the rules.
        graph: in the operator set that the rules speak of.
        unit: another accelerator of the target than the first, such as "DLA".
        note: what else to know.
    """
    basis = ESTIMATED if profile.placement.estimated else RULES
    notes = "; ".join(x for x in (profile.placement.note, note) if x)
    return summarise(
        profile, graph, decide(profile, graph.nodes, unit), unit or profile.accelerator.name, basis, notes
    )


def beside(profile: Profile, graph: GraphFacts, placed: Placement) -> Placement:
    """Return a placement by rules, with what the chip's other accelerators would do with each node."""
    found = {x.name: decide(profile, graph.nodes, x.name) for x in profile.units}
    nodes = tuple(
        msgspec.structs.replace(
            node,
            elsewhere=tuple(
                Elsewhere(
                    unit=unit,
                    takes=decisions[place].unit is Unit.ACCELERATOR,
                    rule=decisions[place].rule,
                    source=decisions[place].source,
                )
                for unit, decisions in found.items()
            ),
        )
        for place, node in enumerate(placed.nodes)
    )
    return msgspec.structs.replace(placed, nodes=nodes)


def on_cpu(profile: Profile, graph: GraphFacts, device: str, *, note: str = "") -> Placement:
    """Return the placement of a graph as the CPU's runtime has optimized it."""
    told = [Decision(unit=Unit.CPU, rule="")] * len(graph.nodes)
    return summarise(profile, graph, told, device, MEASURED, note)


def summarise(
    profile: Profile,
    graph: GraphFacts,
    decisions: Sequence[Decision],
    device: str,
    basis: str,
    note: str = "",
) -> Placement:
    """Return the placement of a graph whose nodes go where these decisions say, one each, in order."""
    nodes = tuple(
        NodePlacement(
            name=fact.name,
            operator=fact.operator,
            unit=decision.unit.value,
            precision=precision(fact),
            macs=fact.macs,
            weight_bytes=fact.weight_bytes,
            rule=decision.rule,
            source=decision.source,
            sure=decision.sure,
        )
        for fact, decision in zip(graph.nodes, decisions, strict=True)
    )
    taken = [x for x in nodes if x.unit == Unit.ACCELERATOR]
    cpu = profile.accelerator.kind == "cpu"
    total = _macs(nodes)
    return Placement(
        device=device,
        basis=basis,
        operators=len(nodes),
        by_precision=dict(sorted(Counter(x.precision for x in nodes).items())),
        float_operators=dict(sorted(Counter(x.operator for x in nodes if "float" in x.precision).items())),
        macs=total,
        uncounted=sum(x.macs is None for x in nodes),
        accelerated_nodes=None if cpu or not nodes else len(taken) / len(nodes),
        accelerated_macs=None if cpu or not total else _macs(taken) / total,
        memory=memory(graph, profile.budget),
        nodes=nodes,
        note=note,
    )


def precision(node: NodeFact) -> str:
    """Return the number format that a node computes in."""
    if node.operator in CONVERSIONS:
        return _CONVERSION
    if node.operator.startswith("DynamicQuantize"):
        return "int8"
    moving = [x for x in (*node.inputs, *node.outputs) if x.name and not x.constant and x.dtype]
    return _PRECISIONS.get(moving[0].dtype, _OTHER) if moving else _OTHER


def _macs(nodes: Iterable[NodePlacement]) -> int:
    return sum(x.macs or 0 for x in nodes)
