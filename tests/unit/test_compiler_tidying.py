"""Tidying up what a quantizer has written."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from compiler.models import tidying


def test_short_names_never_meet_those_of_the_source() -> None:
    """A model of attention calls its tensors q0 and q1 itself."""
    nodes = [
        helper.make_node("Relu", ["q0"], ["q0_quantized_by_the_tool"]),
        helper.make_node("Neg", ["q0_quantized_by_the_tool"], ["q1"]),
        helper.make_node("Add", ["q1", "q0"], ["sum_by_the_tool"]),
        helper.make_node("Abs", ["sum_by_the_tool"], ["q3"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("q0", TensorProto.FLOAT, [2])], [value("q3", TensorProto.FLOAT, [2])]
    )
    model = helper.make_model(graph)
    tidying.shorten(model, frozenset({"q0", "q1", "q3"}))
    onnx.checker.check_model(model)
    made = [x for node in model.graph.node for x in node.output]
    assert made == ["q2", "q1", "q4", "q3"]
    assert [list(x.input) for x in model.graph.node] == [["q0"], ["q2"], ["q1", "q0"], ["q4"]]
