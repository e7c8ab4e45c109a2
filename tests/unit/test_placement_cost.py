"""Multiply-accumulates against counts by hand, and memory against a life story of tensors."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import small_models
from compiler import packaging
from compiler.errors import ModelRefusedError
from compiler.placement import cost, memory, onnx_graph
from compiler.placement.facts import GraphFacts, NodeFact, TensorFact
from compiler.placement.summary import by_rules, on_cpu
from firmware_profiles import registry
from firmware_profiles.profile import Budget
from report_facts import PLACEMENT


def t(*shape: int, constant: bool = False, name: str = "t", dtype: str = "FP32") -> TensorFact:
    return TensorFact(name=name, dtype=dtype, shape=shape, constant=constant)


def macs(operator: str, inputs: list[TensorFact], *out: int, **attributes: int | str) -> int | None:
    return cost.macs(
        NodeFact(
            name="n", operator=operator, inputs=tuple(inputs), outputs=(t(*out),), attributes=dict(attributes)
        )
    )


W = {"constant": True}


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (macs("Conv", [t(1, 3, 8, 8), t(4, 3, 3, 3)], 1, 4, 8, 8), 4 * 64 * 27),
        (macs("Conv", [t(1, 8, 8, 8), t(8, 1, 3, 3)], 1, 8, 8, 8), 8 * 64 * 9),
        (macs("QLinearConv", [t(1, 3, 8, 8), t(), t(), t(4, 3, 3, 3)], 1, 4, 8, 8), 4 * 64 * 27),
        (macs("ConvTranspose", [t(1, 3, 8, 8), t(3, 4, 2, 2)], 1, 4, 16, 16), 3 * 64 * 16),
        (macs("Gemm", [t(5, 7), t(7, 11)], 5, 11), 5 * 7 * 11),
        (macs("Gemm", [t(7, 5), t(7, 11)], 5, 11, transA=1), 5 * 7 * 11),
        (macs("MatMul", [t(2, 3, 5, 7), t(7, 11)], 2, 3, 5, 11), 6 * 5 * 7 * 11),
        (macs("LSTM", [t(9, 1, 4), t(1, 24, 4), t(1, 24, 6)], 9, 1, 1, 6), 9 * 24 * 10),
        (macs("Einsum", [t(2, 3, 5), t(2, 5, 7)], 2, 3, 7, equation="bij,bjk->bik"), 2 * 3 * 5 * 7),
        (macs("Attention", [t(1, 2, 5, 8), t(1, 2, 9, 8), t(1, 2, 9, 8)], 1, 2, 5, 8), 2 * 5 * 8 * 9 * 2),
        (macs("GroupConvolution", [t(1, 8, 8, 8), t(8, 1, 1, 3, 3)], 1, 8, 8, 8), 8 * 64 * 9),
        (macs("DEPTHWISE_CONV_2D", [t(1, 8, 8, 8), t(1, 3, 3, 8)], 1, 8, 8, 8), 8 * 64 * 9),
        (macs("CONV_2D", [t(1, 8, 8, 3), t(4, 3, 3, 3)], 1, 8, 8, 4), 4 * 64 * 27),
        (macs("TRANSPOSE_CONV", [t(4), t(4, 2, 2, 3), t(1, 8, 8, 3)], 1, 16, 16, 4), 3 * 64 * 16),
        (macs("FULLY_CONNECTED", [t(1, 7), t(11, 7)], 1, 11), 77),
        (
            macs("LSTMSequence", [t(1, 9, 4), t(), t(), t(), t(1, 24, 4), t(1, 24, 6)], 1, 1, 9, 6),
            9 * 24 * 10,
        ),
        (macs("Relu", [t(1, 8)], 1, 8), 0),
        (macs("Conv", [t(1, 3, 8, 8), t(4, 3, 3, 3)], 1, 4, -1, -1), None),
        (macs("Einsum", [t(2, 3)], 2, equation="...i->..."), None),
    ],
)
def test_costs_by_hand(got: int | None, want: int | None) -> None:
    assert got == want


def chain(*sizes: int, skip: bool = False) -> GraphFacts:
    """A chain of nodes over byte tensors of these sizes; the last one also reads the first with a skip."""
    tensors = [t(size, name=f"t{i}", dtype="INT8") for i, size in enumerate(sizes)]
    nodes = [
        NodeFact(name=f"n{i}", operator="Relu", inputs=(before,), outputs=(after,))
        for i, (before, after) in enumerate(itertools.pairwise(tensors))
    ]
    if skip:
        last = nodes[-1]
        nodes[-1] = NodeFact(
            name="add", operator="Add", inputs=(*last.inputs, tensors[0]), outputs=last.outputs
        )
    return GraphFacts(nodes=tuple(nodes), inputs=("t0",), outputs=(tensors[-1].name,), weights_bytes=0)


def test_a_chain_holds_two_neighbours_and_a_skip_holds_its_source() -> None:
    assert memory.peak(chain(10, 20, 30, 5)) == 50
    assert memory.peak(chain(10, 20, 30, 5, skip=True)) == 60
    assert memory.peak(GraphFacts(nodes=(), inputs=(), outputs=(), weights_bytes=0)) == 0


def test_a_view_takes_nothing_of_its_own() -> None:
    nodes = (
        NodeFact(name="f", operator="Flatten", inputs=(t(4, 4, name="a"),), outputs=(t(16, name="b"),)),
        NodeFact(name="r", operator="Relu", inputs=(t(16, name="b"),), outputs=(t(16, name="c"),)),
    )
    graph = GraphFacts(nodes=nodes, inputs=("a",), outputs=("c",), weights_bytes=0)
    assert memory.peak(graph) == 2 * 64


def test_over_the_budget_says_by_how_much_and_whether_it_still_runs() -> None:
    graph = GraphFacts(nodes=(), inputs=(), outputs=(), weights_bytes=9 * memory.MIB)
    hard = memory.memory(graph, Budget(memory_mib=8, source="s"))
    soft = memory.memory(graph, Budget(memory_mib=8, streamed=True, source="s"))
    assert (hard.over_bytes, hard.fits) == (memory.MIB, False)
    assert (soft.over_bytes, soft.streamed, soft.fits) == (memory.MIB, True, True)
    assert memory.memory(graph, Budget()).fits


def test_a_model_too_large_for_the_target_is_refused_by_how_much() -> None:
    """The person learns how much smaller it has to become, and on the Edge TPU that it runs all the same."""
    large = msgspec.structs.replace(PLACEMENT.memory, streamed=False)
    refused = msgspec.structs.replace(PLACEMENT, memory=large)
    with pytest.raises(ModelRefusedError, match=r"at most 8 MiB.*coral.*got 10\.0 MiB.*2\.0 MiB too many"):
        packaging.fitting(refused, "coral-edgetpu")
    assert packaging.fitting(PLACEMENT, "coral-edgetpu") is PLACEMENT


def test_the_facts_of_a_float_model() -> None:
    graph = onnx_graph.read(small_models.graph())
    assert [x.operator for x in graph.nodes] == ["Conv", "Relu", "Flatten", "MatMul"]
    assert [x.macs for x in graph.nodes] == [12 * 64 * 9, 0, 0, 768 * 10]
    assert graph.weights_bytes == 4 * (12 * 9 + 7680)
    assert memory.peak(graph) == 2 * 4 * 768
    found = on_cpu(registry.load("laptop-x86"), graph, "here")
    assert found.by_precision == {"float32": 4}
    assert found.accelerated_macs is None


def quantized() -> onnx.ModelProto:
    """Q/DQ around a convolution with its activation, as quantizers write it; floats come in and go out."""
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "s")
    zero = numpy_helper.from_array(np.array(0, np.uint8), "z")
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.int8), "wq")
    wzero = numpy_helper.from_array(np.array(0, np.int8), "wz")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "s", "wz"], ["w"]),
        helper.make_node("Conv", ["xd", "w"], ["y"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["y"], ["r"], name="relu"),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["rq"]),
        helper.make_node("DequantizeLinear", ["rq", "s", "z"], ["rd"]),
        helper.make_node("GlobalAveragePool", ["rd"], ["out"], name="pool"),
    ]
    graph = helper.make_graph(
        nodes,
        "q",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4, 1, 1])],
        [scale, zero, weight, wzero],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_quantized_pairs_are_drawn_into_the_nodes() -> None:
    """An accelerator sees one integer convolution, not five nodes; floats come in by a conversion."""
    graph = onnx_graph.read(quantized())
    assert [x.operator for x in graph.nodes] == ["QuantizeLinear", "Conv", "Relu", "GlobalAveragePool"]
    conv, relu = graph.nodes[1:3]
    assert [x.dtype for x in (*conv.inputs, *conv.outputs)] == ["UINT8", "INT8", "UINT8"]
    assert [x.dtype for x in (*relu.inputs, *relu.outputs)] == ["UINT8", "UINT8"]
    assert conv.macs == 4 * 64 * 27
    assert conv.weight_bytes == 4 * 27
    assert graph.nodes[3].inputs[0].dtype == "UINT8"
    assert by_rules(registry.load("laptop-x86"), graph).by_precision == {"conversion": 1, "int8": 3}


def test_constants_are_folded_and_branches_cost_the_dearer() -> None:
    def branch(name: str, columns: int) -> onnx.GraphProto:
        weight = numpy_helper.from_array(np.ones((4, columns), np.float32), f"w{name}")
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph(
            [helper.make_node("MatMul", ["x", f"w{name}"], [name])], name, [], [out], [weight]
        )

    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["c"], ["ct"]),
            helper.make_node("MatMul", ["x", "ct"], ["y"]),
            helper.make_node("If", ["flag"], ["z"], then_branch=branch("a", 3), else_branch=branch("b", 9)),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(np.ones((2, 4), np.float32), "c")],
    )
    found = onnx_graph.read(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert [(x.operator, x.macs) for x in found.nodes] == [("MatMul", 8), ("If", 36)]
    assert found.weights_bytes == 4 * (8 + 12 + 36)
    assert [x.weight_bytes for x in found.nodes] == [4 * 8, 4 * (12 + 36)]


def test_nodes_in_any_order_and_seen_types_leave_quantized_weights_as_they_are() -> None:
    """Quantizers append nodes after those that read them; a run then sees the floats that Q/DQ pairs give."""
    model = quantized()
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    seen = {"w": TensorFact(name="w", dtype="FP32", shape=(4, 3, 3, 3))}
    found, want = (
        next(y for y in x.nodes if y.name == "conv")
        for x in (onnx_graph.read(model, seen), onnx_graph.read(quantized()))
    )
    assert found == want
