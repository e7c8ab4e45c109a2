"""Coral's rules, as the profile has them: what `edgetpu_compiler` is known to take, and where it stops."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from compiler.backends.edgetpu import placed
from compiler.placement.facts import NodeFact, TensorFact, Value
from compiler.placement.rules import Decision, Unit, decide
from compiler.placement.summary import Placement
from firmware_profiles import registry

PROFILE = registry.load("coral-edgetpu")
MODELS = Path(__file__).parents[3] / "shared" / "models" / "edgetpu"


def shared(name: str) -> Placement:
    path = MODELS / name
    if not path.is_file():
        pytest.skip(f"needs the test model {name} in ../shared/models/edgetpu")
    pytest.importorskip("ai_edge_litert", reason="the package ai-edge-litert is not installed")
    return placed(path, PROFILE, {})


@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_128_quant", "split_concat"])
def test_what_is_known_to_compile_as_a_whole_is_on_the_edge_tpu_as_a_whole(name: str) -> None:
    """Google's own compiled twins of these files consist of one operator for the Edge TPU."""
    found = shared(f"{name}.tflite")
    assert found.units() == {"accelerator": found.operators}
    twin = shared(f"{name}_edgetpu.tflite")
    assert [x.operator for x in twin.nodes] == ["edgetpu-custom-op"]
    assert twin.units() == {"accelerator": 1}


def test_a_file_with_an_operator_of_its_own_stops_there() -> None:
    found = shared("model_invoking_error.tflite")
    assert [(x.operator, x.unit) for x in found.nodes] == [("fake-op-double", "cpu")]


def activation(shape: tuple[int, ...] = (1, 8, 8, 4), dtype: str = "INT8", name: str = "a") -> TensorFact:
    return TensorFact(name=name, dtype=dtype, shape=shape)


def weight(
    shape: tuple[int, ...], *, dtype: str = "INT8", value: tuple[int, ...] | None = None
) -> TensorFact:
    return TensorFact(name="w", dtype=dtype, shape=shape, constant=True, value=value)


def node(operator: str, *inputs: TensorFact, out: TensorFact | None = None, **attributes: Value) -> NodeFact:
    return NodeFact(
        name=f"{operator}-node",
        operator=operator,
        inputs=inputs or (activation(),),
        outputs=(out or activation(),),
        attributes=attributes,
    )


def of(*nodes: NodeFact) -> list[Decision]:
    return decide(PROFILE, nodes)


CONV = node("CONV_2D", activation(), weight((4, 3, 3, 4)), dilation_w_factor=1, dilation_h_factor=1)


@pytest.mark.parametrize(
    "good",
    [
        CONV,
        node("ADD", activation(), activation(name="b"), fused_activation_function="RELU"),
        node("MAX_POOL_2D", fused_activation_function="NONE"),
        node("CONCATENATION", fused_activation_function="NONE", constant_inputs=0, axis=3),
        node("MEAN", activation(), weight((2,), dtype="INT32", value=(1, 2))),
        node("PAD", activation(), weight((4, 2), dtype="INT32"), batch_padding=0),
        node("SPLIT", weight((), dtype="INT32", value=(3,)), activation()),
        node("SOFTMAX", activation((1, 1000)), out=activation((1, 1000))),
        node("FULLY_CONNECTED", activation((1, 64)), weight((10, 64)), out=activation((1, 10))),
        node("PRELU", activation(), weight((1, 1, 4))),
        node("STRIDED_SLICE", strides=(1, 1, 1, 1), ellipsis_mask=0, new_axis_mask=0),
        node("PACK", axis=1),
        node("RELU6", activation(dtype="UINT8"), out=activation(dtype="UINT8")),
    ],
)
def test_what_the_documentation_allows_runs_there(good: NodeFact) -> None:
    assert of(good)[0].unit is Unit.ACCELERATOR


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        (node("EXP"), "not among the operators"),
        (
            msgspec.structs.replace(CONV, attributes={"dilation_w_factor": 2, "dilation_h_factor": 1}),
            "dilations",
        ),
        (msgspec.structs.replace(CONV, inputs=(activation(), activation(name="w"))), "constant weights"),
        (node("AVERAGE_POOL_2D", fused_activation_function="RELU"), "no fused activation"),
        (node("CONCATENATION", fused_activation_function="NONE", constant_inputs=1), "no constant"),
        (
            node("FULLY_CONNECTED", activation((4, 64)), weight((10, 64)), out=activation((4, 10))),
            "one dimension",
        ),
        (node("MEAN", activation(), weight((2,), dtype="INT32", value=(0, 1))), "not over the batch"),
        (
            node("PAD", activation(), weight((4, 2), dtype="INT32"), batch_padding=2),
            "no padding of the batch",
        ),
        (node("PAD", activation(), activation(dtype="INT8")), "no padding of the batch"),
        (node("PACK", axis=0), "not along the batch"),
        (node("SPLIT", weight((), dtype="INT32", value=(0,)), activation()), "not along the batch"),
        (node("SOFTMAX", activation((1, 20, 30)), out=activation((1, 20, 30))), "one dimension"),
        (node("SOFTMAX", activation((1, 16001)), out=activation((1, 16001))), "16,000"),
        (node("PRELU", activation(), weight((8, 8, 4))), "one slope"),
        (node("STRIDED_SLICE", strides=(1, 2, 1, 1)), "strides of 1"),
        (node("ADD", activation(dtype="FP32"), activation()), "int8 or uint8"),
        (node("ADD", activation((1, -1, 8, 4)), activation()), "fixed shapes"),
        (node("ADD", activation((2, 8, 8, 4)), out=activation((2, 8, 8, 4))), "innermost three"),
    ],
)
def test_what_it_forbids_runs_on_the_cpu_with_the_reason_and_its_source(bad: NodeFact, rule: str) -> None:
    found = of(bad)[0]
    assert found.unit is Unit.CPU
    assert rule in found.rule
    assert "Coral documentation" in found.source


def test_the_first_operator_that_it_does_not_take_sends_all_after_it_to_the_cpu() -> None:
    """There is one partition: an early stranger costs more than ten at the end."""
    found = of(CONV, CONV, node("EXP"), CONV, CONV)
    assert [x.unit for x in found] == [Unit.ACCELERATOR] * 2 + [Unit.CPU] * 3
    assert "after EXP 'EXP-node'" in found[3].rule


@pytest.mark.parametrize("operator", ["TRANSPOSE", "TRANSPOSE_CONV", "RESHAPE", "RESIZE_BILINEAR"])
def test_what_may_or_may_not_be_mapped_is_not_called_sure(operator: str) -> None:
    found = of(node(operator))[0]
    assert found.unit is Unit.ACCELERATOR
    assert not found.sure
