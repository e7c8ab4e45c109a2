"""Operator rules as data: what each check says, and how accelerator and CPU share a graph."""

from __future__ import annotations

import typing

import msgspec
import pytest

from compiler.placement import rules
from compiler.placement.facts import NodeFact, TensorFact, Value
from compiler.placement.rules import Decision, Unit, decide
from firmware_profiles import checks, registry
from firmware_profiles.profile import (
    Fallback,
    OperatorRule,
    Partition,
    PlacementPolicy,
    Profile,
    Support,
)

ALWAYS = registry.load("laptop-x86")
EACH = PlacementPolicy()
LISTED = PlacementPolicy(listed_only=True)
PREFIX = PlacementPolicy(listed_only=True, partition=Partition.PREFIX)
WHOLE = PlacementPolicy(listed_only=True, partition=Partition.WHOLE, fallback=Fallback.REFUSED)
STRICT = PlacementPolicy(listed_only=True, fallback=Fallback.REFUSED)


def tensor(*shape: int, dtype: str = "INT8", constant: bool = False, **more: tuple[int, ...]) -> TensorFact:
    return TensorFact(name="t", dtype=dtype, shape=shape, constant=constant, **more)


def node(operator: str = "Conv", *inputs: TensorFact, **attributes: Value) -> NodeFact:
    given = inputs or (tensor(1, 8, 8, 3),)
    return NodeFact(
        name=operator.lower(),
        operator=operator,
        inputs=given,
        outputs=(tensor(1, 8, 8, 4),),
        attributes=attributes,
    )


def profile(*found: OperatorRule, policy: PlacementPolicy = EACH) -> Profile:
    return msgspec.structs.replace(ALWAYS, operators=found, placement=policy)


def limited(*found: checks.Check, operators: tuple[str, ...] = ("Conv",)) -> OperatorRule:
    return OperatorRule(
        operators=operators,
        support=Support.LIMITED,
        condition="the condition",
        checks=found,
        source="the source",
    )


def one(rule: OperatorRule, what: NodeFact) -> Decision:
    return decide(profile(rule), [what])[0]


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (checks.DataType(one_of=("INT8",)), node(), node("Conv", tensor(1, 2, dtype="FP32"))),
        (checks.DataType(one_of=("INT8",)), node(), node("Conv", TensorFact(name="t", shape=(1,)))),
        (checks.Rank(most=4), node(), node("Conv", tensor(1, 2, 3, 4, 5))),
        (checks.Rank(least=2, most=9), node(), node("Conv", tensor(2))),
        (checks.Innermost(dimensions=3), node(), node("Conv", tensor(2, 8, 8, 3))),
        (checks.StaticShape(), node(), node("Conv", tensor(-1, 8, 8, 3))),
        (checks.StaticShape(), node(), node("Conv", TensorFact(name="t", dtype="INT8"))),
        (checks.Dimension(axis=-1, most=3, of="inputs"), node(), node("Conv", tensor(1, 2, 3, 4))),
        (checks.Elements(most=256), node(), node("Conv", tensor(1), k=1)),
        (
            checks.Constant(inputs=(1,)),
            node("Conv", tensor(1), tensor(3, constant=True)),
            node("Conv", tensor(1), tensor(3)),
        ),
        (checks.AttributeIs(name="mode", one_of=("linear",)), node(mode="linear"), node(mode="cubic")),
        (checks.AttributeIs(name="k", one_of=(1, 2)), node(k=(1, 2, 1)), node(k=(1, 3))),
        (checks.AttributeIs(name="k", one_of=(1,), default=2), node(k=1), node()),
        (checks.AttributeWithin(name="k", least=1, most=3), node(k=(1, 3)), node(k=(1, 4))),
        (checks.EqualAttributes(names=("h", "w")), node(h=2, w=2), node(h=1, w=2)),
        (checks.EqualAttributes(names=("d",)), node(d=(2, 2)), node(d=(1, 2))),
        (checks.NotOverBatch(name="axes"), node(axes=(1, -1)), node(axes=(0, 1))),
        (checks.NotOverBatch(name="axes"), node(axes=(2,)), node(axes=(-4,))),
        (checks.NotOverBatch(name="axes"), node(axes=2), node()),
        (
            checks.NotOverBatch(input=1),
            node("Conv", tensor(1, 2, 3), tensor(1, constant=True, value=(2,))),
            node("Conv", tensor(1, 2, 3), tensor(1)),
        ),
        (checks.OperatorSet(most=10), node(), msgspec.structs.replace(node(), version=11)),
    ],
)
def test_a_check_tells_good_from_bad(check: checks.Check, good: NodeFact, bad: NodeFact) -> None:
    if isinstance(check, checks.Elements):
        bad = msgspec.structs.replace(bad, outputs=(tensor(1, 257),))
    assert one(limited(check), good).unit is Unit.ACCELERATOR
    refused = one(limited(check), bad)
    assert refused == Decision(unit=Unit.CPU, rule="limited: the condition", source="the source")


def test_every_check_of_the_vocabulary_is_evaluated() -> None:
    """A check that a profile may state, and nothing evaluates, would pass everything."""
    assert set(typing.get_args(checks.Check)) == set(rules._HOLDS)


def test_an_unsupported_operator_with_checks_is_refused_only_where_they_hold() -> None:
    rule = OperatorRule(
        operators=("Pad",),
        support=Support.UNSUPPORTED,
        condition="no reflection",
        checks=(checks.AttributeIs(name="mode", one_of=("reflect",), default="constant"),),
        source="s",
    )
    assert one(rule, node("Pad", mode="reflect")).rule == "no reflection"
    assert one(rule, node("Pad")).unit is Unit.ACCELERATOR
    assert one(rule, node("Pad", mode="edge")).unit is Unit.ACCELERATOR


def test_all_rules_of_an_operator_hold_together_and_the_general_ones_too() -> None:
    both = profile(
        limited(checks.Rank(most=4)),
        limited(checks.AttributeWithin(name="k", most=3), operators=("*",)),
    )
    assert [x.unit for x in decide(both, [node(k=3), node(k=4), node("Conv", tensor(1, 1, 1, 1, 1))])] == [
        Unit.ACCELERATOR,
        Unit.CPU,
        Unit.CPU,
    ]


def test_a_condition_without_checks_leaves_doubt() -> None:
    found = one(limited(), node())
    assert found.unit is Unit.ACCELERATOR
    assert not found.sure
    assert found.rule == "the condition"


SUPPORTED = OperatorRule(operators=("Conv", "Relu"), support=Support.SUPPORTED, source="list")
GRAPH = [node("Conv"), node("Gelu"), node("Relu"), node("Erf"), node("Conv")]


def units(policy: PlacementPolicy) -> str:
    found = decide(profile(SUPPORTED, policy=policy), GRAPH)
    return "".join(x.unit.value[0] for x in found)


def test_the_ways_to_share_a_graph() -> None:
    """Edge TPU: one partition, the first unsupported node ends it. A context binary: all or nothing."""
    assert units(LISTED) == "acaca"
    assert units(PREFIX) == "acccc"
    assert units(WHOLE) == "rrrrr"
    assert units(STRICT) == "arara"


def test_what_follows_the_first_unsupported_node_says_so() -> None:
    found = decide(profile(SUPPORTED, policy=PREFIX), GRAPH)
    assert found[1].rule == "Gelu is not among the operators that the accelerator takes"
    assert found[2].rule == "after Gelu 'gelu', the first that is not supported"
    assert found[3].rule.startswith("Erf is not among")


def test_rules_of_another_unit_are_kept_apart() -> None:
    dla = OperatorRule(operators=("Conv",), support=Support.UNSUPPORTED, unit="DLA", source="s")
    assert decide(profile(dla), [node()])[0].unit is Unit.ACCELERATOR
    assert decide(profile(dla), [node()], "DLA")[0].unit is Unit.CPU
