"""Where Q/DQ pairs go, and how weights become integers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import residual_model
from compiler.models.graphs import Graph
from compiler.tensorrt import insertion, producer, rules

KNOWN = dict.fromkeys(("x", "c1", "r1", "c2", "sum", "r2", "pooled", "flat", "dense", "y", "z"), 3.0)


def layer(
    operator: str, weights: tuple[int, ...], shape: tuple[int, ...], **attributes: int
) -> onnx.ModelProto:
    """Return a model of one operator with weights."""
    values = np.random.default_rng(1).normal(size=weights).astype(np.float32)
    node = helper.make_node(operator, ["x", "w"], ["y"], name="layer")
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    return helper.make_model(
        helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(values, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )


def test_a_residual_block_has_the_pairs_that_fuse() -> None:
    """Inputs of weighted layers, the skip connection and pooling; nothing behind a convolution."""
    graph = Graph(residual_model.graph())
    found = {(node.name, position) for node, position in insertion.ends(graph, KNOWN, frozenset())}
    weighted = {(name, position) for name in ("first", "second", "dense") for position in (0, 1)}
    assert found == {*weighted, ("skip", 1), ("pool", 0)}


def test_a_tensor_is_quantized_once_and_dequantized_for_each_reader() -> None:
    model = insertion.quantize(residual_model.graph(), KNOWN)
    kinds = [x.op_type for x in model.graph.node]
    assert kinds.count("QuantizeLinear") == 4
    assert len(Graph(model).readers["r1_q"]) == 2
    assert all(len(Graph(model).readers[x.output[0]]) == 1 for x in model.graph.node if "dq" in x.name)


def test_what_is_left_in_float_has_no_pairs_and_lets_its_sum_be() -> None:
    graph = Graph(residual_model.graph())
    found = {node.name for node, _ in insertion.ends(graph, KNOWN, frozenset({"second"}))}
    assert found == {"first", "pool", "dense"}


def test_a_tensor_without_a_range_is_not_quantized() -> None:
    graph = Graph(residual_model.graph())
    known = {x: y for x, y in KNOWN.items() if x != "r1"}
    assert "second" not in {node.name for node, _ in insertion.ends(graph, known, frozenset())}


@pytest.mark.parametrize(
    ("model", "axis", "channels"),
    [
        (layer("Conv", (6, 4, 3, 3), (1, 4, 8, 8)), 0, 6),
        (layer("Conv", (8, 1, 3, 3), (1, 8, 8, 8), group=8), 0, 8),
        (layer("ConvTranspose", (4, 6, 3, 3), (1, 4, 8, 8)), 1, 6),
        (layer("Gemm", (4, 6), (2, 4)), 1, 6),
        (layer("Gemm", (6, 4), (2, 4), transB=1), 0, 6),
        (layer("MatMul", (4, 6), (2, 4)), 1, 6),
    ],
    ids=["conv", "depthwise", "deconvolution", "gemm", "gemm-transposed", "matmul"],
)
def test_weights_have_a_scale_per_output_channel(model: onnx.ModelProto, axis: int, channels: int) -> None:
    values = numpy_helper.to_array(model.graph.initializer[0])
    insertion.quantize(model, KNOWN)
    graph = Graph(model)
    source = graph.dequantized(next(x for x in graph.nodes if x.name == "layer").input[1])
    assert source is not None
    scales, integers = graph.array(source.input[1]), graph.array(source.input[0])
    assert scales is not None
    assert integers is not None
    assert scales.shape == (channels,)
    shape = [1] * values.ndim
    shape[axis] = channels
    steps = scales.reshape(shape).astype(np.float32)
    assert (np.abs(integers.astype(np.float32) * steps - values) <= 0.5001 * steps).all()
    assert rules.check(model) == []


def test_a_grouped_deconvolution_has_one_scale() -> None:
    """Its output channels lie along two axes at once."""
    model = insertion.quantize(layer("ConvTranspose", (8, 2, 3, 3), (1, 8, 8, 8), group=2), KNOWN)
    scale = Graph(model).array("w_scale")
    assert scale is not None
    assert scale.shape == ()
    assert rules.check(model) == []


def test_a_product_of_two_activations_is_quantized_on_both_sides() -> None:
    node = helper.make_node("MatMul", ["x", "z"], ["y"], name="attention")
    values = [helper.make_tensor_value_info(x, TensorProto.FLOAT, [2, 4, 4]) for x in ("x", "z")]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4, 4])
    graph = helper.make_graph([node], "attention", values, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    insertion.quantize(model, KNOWN)
    assert [Graph(model).dequantized(x) is not None for x in model.graph.node[-1].input] == [True, True]
    assert rules.check(model) == []


def test_layers_with_few_channels_are_narrow() -> None:
    """int8 works on packs of channels; depthwise convolutions have kernels of their own."""
    assert insertion.narrow(Graph(layer("Conv", (32, 3, 3, 3), (1, 3, 8, 8)))) == ("layer",)
    assert insertion.narrow(Graph(layer("Gemm", (64, 10), (2, 64)))) == ("layer",)
    assert insertion.narrow(Graph(layer("Conv", (32, 32, 3, 3), (1, 32, 8, 8)))) == ()
    assert insertion.narrow(Graph(layer("Conv", (32, 1, 3, 3), (1, 32, 8, 8), group=32))) == ()


def test_anothers_model_comes_to_our_form() -> None:
    """ModelOpt keeps weights in float before a Q, and lets readers share a DQ, a shape among them."""
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(16, 16, 1, 1)).astype(np.float32)
    scales = (np.abs(weights).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x_q"], name="q"),
        helper.make_node("DequantizeLinear", ["x_q", "s", "z"], ["x_dq"], name="dq"),
        helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["w_q"], name="wq", axis=0),
        helper.make_node("DequantizeLinear", ["w_q", "ws", "wz"], ["w_dq"], name="wdq", axis=0),
        helper.make_node("Shape", ["x_dq"], ["shape"], name="shape"),
        helper.make_node("Conv", ["x_dq", "w_dq"], ["c"], name="one"),
        helper.make_node("Conv", ["x_dq", "w_dq"], ["d"], name="two"),
        helper.make_node("Concat", ["c", "d"], ["e"], name="both", axis=1),
        helper.make_node("Reshape", ["e", "two_dims"], ["y"], name="flat"),
    ]
    constants = {
        "s": np.array(0.1, np.float32),
        "z": np.array(0, np.int8),
        "w": weights,
        "ws": scales,
        "wz": np.zeros(16, np.int8),
        "two_dims": np.array([0, -1], np.int64),
    }
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 4, 4])]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("shape", TensorProto.INT64, [4]),
    ]
    initializers = [numpy_helper.from_array(x, name) for name, x in constants.items()]
    graph = helper.make_graph(nodes, "theirs", values, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    assert rules.check(model) != []
    producer.adopt(model)
    assert rules.check(model) == []
    found = Graph(model)
    integers = found.array("w_q")
    assert integers is not None
    assert integers.dtype == np.int8
    steps = scales.reshape(-1, 1, 1, 1)
    assert (np.abs(integers.astype(np.float32) * steps - weights) <= 0.5001 * steps).all()
    assert "w" not in found.constants
