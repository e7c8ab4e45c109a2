"""Applying a profile's operator rules to the nodes of a graph. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from compiler.placement.facts import NodeFact, TensorFact, Value
from firmware_profiles import checks
from firmware_profiles.profile import (
    Fallback,
    OperatorRule,
    Partition,
    PlacementPolicy,
    Profile,
    Support,
)

ALL: Final = "*"


class Unit(str, enum.Enum):
    """What runs a node."""

    ACCELERATOR = "accelerator"
    CPU = "cpu"
    REFUSED = "refused"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Where a node goes.

    Attributes:
        rule: what decided it, in words.
        source: where the rule comes from.
        sure: a program could check every condition.
    """

    unit: Unit
    rule: str
    source: str = ""
    sure: bool = True


def decide(profile: Profile, nodes: Sequence[NodeFact], unit: str = "") -> list[Decision]:
    """Return where each node goes.

    Args:
        profile: with the rules, and how they become a placement.
        nodes: in the order in which they run.
        unit: another accelerator of the target, which takes only what a rule names; "" for the first.
    """
    rules = [x for x in profile.operators if x.unit == unit]
    policy = profile.placement
    if unit:
        policy = msgspec.structs.replace(policy, listed_only=True)
    found = [_one(rules, policy, node) for node in nodes]
    refused = [i for i, x in enumerate(found) if x.unit is not Unit.ACCELERATOR]
    if not refused or policy.partition is Partition.EACH:
        return found
    first = refused[0]
    blamed = f"{nodes[first].operator} {nodes[first].name!r}"
    if policy.partition is Partition.WHOLE:
        other = Decision(unit=_fallback(policy), rule=f"all or nothing: {blamed} is not supported")
        return [x if i in refused else other for i, x in enumerate(found)]
    after = Decision(unit=_fallback(policy), rule=f"after {blamed}, the first that is not supported")
    return [x if i <= first or i in refused else after for i, x in enumerate(found)]


def _fallback(policy: PlacementPolicy) -> Unit:
    return Unit.REFUSED if policy.fallback is Fallback.REFUSED else Unit.CPU


def _one(rules: Sequence[OperatorRule], policy: PlacementPolicy, node: NodeFact) -> Decision:
    named = [x for x in rules if node.operator in x.operators]
    general = [x for x in rules if ALL in x.operators]
    for rule in (*named, *general):
        broken = _broken(rule, node)
        if broken is not None:
            return Decision(unit=_fallback(policy), rule=broken, source=rule.source)
    held = next(iter(named), None)
    if held is None and policy.listed_only:
        text = f"{node.operator} is not among the operators that the accelerator takes"
        return Decision(unit=_fallback(policy), rule=text, source=_source(rules))
    sure = all(x.checks for x in named if x.support is Support.LIMITED)
    if held is None:
        return Decision(unit=Unit.ACCELERATOR, rule="no rule against it", source=_source(general))
    conditions = "; ".join(x.condition for x in named if x.condition)
    return Decision(unit=Unit.ACCELERATOR, rule=conditions or "supported", source=held.source, sure=sure)


def _source(rules: Sequence[OperatorRule]) -> str:
    return rules[0].source if rules else ""


def _broken(rule: OperatorRule, node: NodeFact) -> str | None:
    """Return why the node does not keep the rule, or None where it does."""
    failed = [x for x in rule.checks if not _HOLDS[type(x)](x, node)]
    if rule.support is Support.UNSUPPORTED:
        return None if failed else rule.condition or f"{node.operator} is not supported"
    if rule.support is Support.LIMITED and failed:
        return f"limited: {rule.condition}"
    return None


def _tensors(node: NodeFact, of: checks.Tensors) -> list[TensorFact]:
    inputs = [x for x in node.inputs if x.name]
    chosen = {
        "inputs": inputs,
        "outputs": list(node.outputs),
        "activations": [x for x in (*inputs, *node.outputs) if not x.constant],
        "weights": [x for x in inputs if x.constant],
        "all": [*inputs, *node.outputs],
    }
    return [x for x in chosen[of] if x.name]


def _data_type(check: checks.DataType, node: NodeFact) -> bool:
    return all(x.dtype in check.one_of for x in _tensors(node, check.of))


def _rank(check: checks.Rank, node: NodeFact) -> bool:
    shapes = [x.shape for x in _tensors(node, check.of)]
    return all(x is not None and check.least <= len(x) <= check.most for x in shapes)


def _innermost(check: checks.Innermost, node: NodeFact) -> bool:
    shapes = [x.shape for x in _tensors(node, check.of)]
    return all(
        x is not None and all(size == 1 for size in x[: max(0, len(x) - check.dimensions)]) for x in shapes
    )


def _static(check: checks.StaticShape, node: NodeFact) -> bool:
    return all(x.elements is not None for x in _tensors(node, check.of))


def _dimension(check: checks.Dimension, node: NodeFact) -> bool:
    for tensor in _tensors(node, check.of):
        if tensor.shape is None:
            return False
        place = check.axis if check.axis >= 0 else len(tensor.shape) + check.axis
        if 0 <= place < len(tensor.shape) and not check.least <= tensor.shape[place] <= check.most:
            return False
    return True


def _elements(check: checks.Elements, node: NodeFact) -> bool:
    counts = [x.elements for x in _tensors(node, check.of)]
    return all(x is not None and x <= check.most for x in counts)


def _constant(check: checks.Constant, node: NodeFact) -> bool:
    there = [node.inputs[i] for i in check.inputs if i < len(node.inputs)]
    return all(x.constant for x in there if x.name)


def _values(node: NodeFact, name: str) -> list[Any]:
    """Return the attribute's values, one or all of a list; none where it is absent."""
    value: Value = node.attributes.get(name, ())
    return list(value) if isinstance(value, tuple) else [value]


def _attribute_is(check: checks.AttributeIs, node: NodeFact) -> bool:
    if check.name not in node.attributes:
        return check.default is None or check.default in check.one_of
    return all(x in check.one_of for x in _values(node, check.name))


def _attribute_within(check: checks.AttributeWithin, node: NodeFact) -> bool:
    return all(
        (check.least is None or x >= check.least) and (check.most is None or x <= check.most)
        for x in _values(node, check.name)
    )


def _equal(check: checks.EqualAttributes, node: NodeFact) -> bool:
    return len({x for name in check.names for x in _values(node, name)}) <= 1


def _not_over_batch(check: checks.NotOverBatch, node: NodeFact) -> bool:
    axes: Sequence[Any] | None = _values(node, check.name) if check.name else []
    if check.input is not None and check.input < len(node.inputs) and node.inputs[check.input].name:
        axes = node.inputs[check.input].value
        if axes is None:
            return False
    if not axes:
        return not check.every
    rank = len(node.inputs[0].shape or ()) if node.inputs else 0
    return all(x != 0 and x + rank != 0 for x in axes)


def _operator_set(check: checks.OperatorSet, node: NodeFact) -> bool:
    return check.least <= node.version <= check.most


#: One row per check of the vocabulary; a contract test holds it complete.
_HOLDS: Final[dict[type[checks.Check], Callable[[Any, NodeFact], bool]]] = {
    checks.DataType: _data_type,
    checks.Rank: _rank,
    checks.Innermost: _innermost,
    checks.StaticShape: _static,
    checks.Dimension: _dimension,
    checks.Elements: _elements,
    checks.Constant: _constant,
    checks.AttributeIs: _attribute_is,
    checks.AttributeWithin: _attribute_within,
    checks.EqualAttributes: _equal,
    checks.NotOverBatch: _not_over_batch,
    checks.OperatorSet: _operator_set,
}
