"""What the Hexagon backend decides without its tools: stamps, recipes, refusals in words, placements."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.candidates import Scheme
from compiler.errors import CompileError
from compiler.placement.facts import GraphFacts, NodeFact, TensorFact
from compiler.qnn import compiling, placing, recipes, stamps
from compiler.qnn.compiling import Operator
from firmware_profiles import registry
from firmware_profiles.profile import Family, Precision
from fleet.bundle import htp_stamp
from fleet.errors import BundleError

TARGETS = [x for x in registry.names() if registry.load(x).family is Family.QUALCOMM]


def binary(chip: str, arch: int, vtcm: int) -> bytes:
    return f"\0;soc_type={chip};arch={arch};num_nsps=1;vtcm_size={vtcm};02reserved\0".encode()


@pytest.mark.parametrize("target", TARGETS)
def test_a_binary_for_the_targets_chip_passes(target: str) -> None:
    accelerator = registry.load(target).accelerator
    want = stamps.wanted(accelerator)
    stamps.check(htp_stamp.read(binary(want.chip, want.arch, want.vtcm_mib << 20)), accelerator)


@pytest.mark.parametrize("target", TARGETS)
def test_the_stamp_of_every_other_chip_is_refused(target: str) -> None:
    """Two chips of one architecture differ too: their memories and clocks were planned with."""
    accelerator = registry.load(target).accelerator
    for other in TARGETS:
        if other != target:
            stamp = stamps.wanted(registry.load(other).accelerator)
            with pytest.raises(CompileError, match=f"expected one for {accelerator.chip}, .* got one for"):
                stamps.check(stamp, accelerator)


def test_a_binary_of_two_graphs_for_one_chip_has_one_stamp() -> None:
    twice = binary("SM8650", 75, 8 << 20) * 2
    assert htp_stamp.read(twice) == htp_stamp.HtpStamp(chip="SM8650", arch=75, vtcm_mib=8)


@pytest.mark.parametrize(
    "data", [b"", b"soc_type=;arch=75;", binary("SM8650", 75, 1) + binary("SM8550", 73, 1)]
)
def test_no_stamp_and_two_stamps_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="expected the stamp of one chip"):
        htp_stamp.read(data)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_stamp_or_a_refusal(data: bytes) -> None:
    """A bundle's file may hold anything."""
    try:
        htp_stamp.read(data)
    except BundleError:
        return
    assert b"soc_type=" in data


def test_targets_without_float16_are_offered_none() -> None:
    """v68 has no float path: a float16 candidate would be found out on the device only."""
    for target in TARGETS:
        profile = registry.load(target)
        schemes = {x.scheme for x in recipes.plan(profile.precisions)}
        assert (Scheme.HALF in schemes) == (Precision.FLOAT16 in profile.precisions)
        assert Precision.FLOAT16 not in profile.precisions or profile.accelerator.version != "v68"


def test_candidates_have_names_of_their_own() -> None:
    plan = recipes.plan(list(Precision))
    assert len({x.name for x in plan}) == len(plan)
    assert {x.precision for x in plan} == {"int8", "int16", "float16"}


def test_a_refusal_counts_types_and_names_the_first_of_each() -> None:
    nodes = {"a": "If", "b": "Loop", "c": "If", **{f"d{i}": f"Kind{i}" for i in range(4)}}
    assert compiling.listed(nodes).startswith("2 If ('a'), 1 Loop ('b'), ")
    assert compiling.listed(nodes).endswith(", and 2 other types")


def test_every_node_is_on_the_npu_and_floats_there_are_float16() -> None:
    """With the fallback to the CPU disabled there is no other place; names lose what the runtime appended."""
    weight = TensorFact(name="w", dtype="FP32", shape=(3, 3), constant=True)
    moving = TensorFact(name="x", dtype="FP32", shape=(1, 3))
    nodes = (
        NodeFact(name="dense", operator="Gemm", inputs=(moving, weight), outputs=(moving,), weight_bytes=36),
        NodeFact(name="relu", operator="Relu", inputs=(moving,), outputs=(moving,)),
    )
    graph = GraphFacts(nodes=nodes, inputs=("x",), outputs=("x",), weights_bytes=36)
    operators = [Operator(operator="FullyConnected", nodes=("dense_token_7",))]
    found = placing.placement(registry.load("snapdragon-8gen3"), graph, operators)
    assert [x.rule for x in found.nodes] == ["became FullyConnected", "folded into another operator"]
    assert found.units() == {"accelerator": 2}
    assert found.by_precision == {"float16": 2}
    assert "through 8 MiB of VTCM" in found.note
    assert (found.nodes[0].weight_bytes, found.memory.weights_bytes) == (18, 18)
