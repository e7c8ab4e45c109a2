"""Typing models in float16, and running what is typed so as its device would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import residual_model
from compiler.errors import CompileError
from compiler.quantizing import rounding
from compiler.tensorrt import half, insertion, opsets, rules
from compiler.tensors import Arrays

KNOWN = dict.fromkeys(("x", "c1", "r1", "c2", "sum", "r2", "pooled", "flat", "dense", "y", "middle"), 3.0)


def typed(model: onnx.ModelProto) -> dict[str, int]:
    """Return the type of each node's first output."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True).graph
    types = {x.name: x.type.tensor_type.elem_type for x in (*inferred.value_info, *inferred.output)}
    return {x.name: types[x.output[0]] for x in inferred.node}


def products(first: float, second: float) -> onnx.ModelProto:
    """Return two products in a row."""
    weights = [
        numpy_helper.from_array(np.full((4, 4), x, np.float32), n) for x, n in ((first, "a"), (second, "b"))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["middle"], name="one"),
        helper.make_node("MatMul", ["middle", "b"], ["y"], name="two"),
    ]
    values = [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, 4]) for x in ("x", "y")]
    graph = helper.make_graph(nodes, "products", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_inputs_and_outputs_stay_float32_and_so_does_softmax() -> None:
    model = half.convert(residual_model.graph(), KNOWN)
    kinds = typed(model)
    assert kinds["first"] == kinds["skip"] == kinds["dense"] == TensorProto.FLOAT16
    assert kinds["softmax"] == TensorProto.FLOAT
    ends = (*model.graph.input, *model.graph.output)
    assert {x.type.tensor_type.elem_type for x in ends} == {TensorProto.FLOAT}
    assert sum(x.op_type == "Cast" for x in model.graph.node) == 2
    assert len(model.SerializeToString()) < 0.6 * len(residual_model.graph().SerializeToString())


def test_an_operator_whose_numbers_pass_float16_stays_float32() -> None:
    """On calibration data the sum came near float16's largest number."""
    kinds = typed(half.convert(residual_model.graph(), {**KNOWN, "sum": 50_000.0}))
    assert kinds["skip"] == kinds["relu2"] == TensorProto.FLOAT
    assert kinds["first"] == TensorProto.FLOAT16


def test_an_operator_whose_numbers_nobody_saw_stays_float32() -> None:
    kinds = typed(half.convert(residual_model.graph(), {x: y for x, y in KNOWN.items() if x != "c2"}))
    assert kinds["second"] == kinds["skip"] == TensorProto.FLOAT
    assert kinds["first"] == TensorProto.FLOAT16


def test_weights_that_pass_float16_stay_float32() -> None:
    kinds = typed(half.convert(products(1e5, 1e-3), KNOWN))
    assert kinds["one"] == TensorProto.FLOAT
    assert kinds["two"] == TensorProto.FLOAT16


def test_nothing_to_type_is_said() -> None:
    with pytest.raises(CompileError, match="no operator can be float16"):
        half.convert(products(1e5, 1e5), KNOWN)


def test_pairs_are_typed_as_what_they_are_fused_with() -> None:
    """A pair's scale with the digits that float16 has: Q and DQ agree whichever type each has."""
    model = half.convert(insertion.quantize(residual_model.graph(), {**KNOWN, "r1": 0.77}), KNOWN)
    assert model.opset_import[0].version == opsets.FLOAT16_PAIRS
    assert rules.check(model) == []
    scales = [x for x in model.graph.initializer if x.name.startswith("r1_scale")]
    assert len({float(numpy_helper.to_array(x)) for x in scales}) == 1


def test_a_scale_too_small_for_float16_keeps_its_operator_in_float32() -> None:
    """The other operators become float16 all the same, and every pair stays whole."""
    small = insertion.quantize(residual_model.graph(), {**KNOWN, "pooled": 1e-4, "flat": 1e-4})
    model = half.convert(small, KNOWN)
    kinds = typed(model)
    assert kinds["dense"] == TensorProto.FLOAT
    assert kinds["second"] == TensorProto.FLOAT16
    assert rules.check(model) == []


def test_a_branch_still_finds_the_tensors_around_it() -> None:
    """What a subgraph reads keeps its name and its type."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["middle"], ["inner"])],
        "then",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1, 4])],
    )
    model = products(0.5, 0.5)
    condition = numpy_helper.from_array(np.array(True), "condition")
    model.graph.initializer.append(condition)
    other = helper.make_node("If", ["condition"], ["z"], name="if", then_branch=inner, else_branch=inner)
    model.graph.node.append(other)
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4]))
    kinds = typed(half.convert(model, KNOWN))
    assert kinds["two"] == TensorProto.FLOAT16
    assert kinds["if"] == TensorProto.FLOAT


def test_an_overflow_is_seen_on_a_cpu(tmp_path: Path) -> None:
    """ONNX Runtime leaves out the rounding between float16 operators: 240 000 would pass for a number."""
    onnx.save(half.convert(products(300.0, 1e-3), KNOWN), tmp_path / "model.onnx")
    feed: Arrays = {"x": np.full((1, 4), 200.0, np.float32)}
    assert np.isfinite(rounding.reference(tmp_path / "model.onnx").run(feed)["y"]).all()
    assert np.isinf(rounding.session(tmp_path / "model.onnx").run(feed)["y"]).all()
    assert [x.name for x in tmp_path.iterdir()] == ["model.onnx"]


def test_bfloat16_has_eight_digits(tmp_path: Path) -> None:
    onnx.save(products(1.0 + 2**-9, 1.0), tmp_path / "model.onnx")
    feed: Arrays = {"x": np.array([[1.0, 0.0, 0.0, 0.0]], np.float32)}
    exact = rounding.session(tmp_path / "model.onnx").run(feed)["y"]
    rounded = rounding.session(tmp_path / "model.onnx", bfloat16=True).run(feed)["y"]
    assert exact[0, 0] == pytest.approx(4 * (1 + 2**-9))
    assert rounded[0, 0] == 4.0
