"""Each of TensorRT's rules is broken once in a model that keeps them all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import residual_model
from compiler.tensorrt import half, insertion, rules
from compiler.tensorrt.rules import Rule

KNOWN = dict.fromkeys(("x", "c1", "r1", "c2", "sum", "r2", "pooled", "flat", "dense", "y"), 3.0)
Break = Callable[[onnx.ModelProto], None]


def quantized() -> onnx.ModelProto:
    return insertion.quantize(residual_model.graph(), KNOWN)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(x for x in model.graph.node if x.name == name)
    return found


def before(model: onnx.ModelProto, name: str, position: int) -> onnx.NodeProto:
    """Return what makes an input of a node."""
    wanted = node(model, name).input[position]
    found: onnx.NodeProto = next(x for x in model.graph.node if wanted in x.output)
    return found


def constant(value: npt.ArrayLike, kind: str, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, kind), name)


def replace(model: onnx.ModelProto, name: str, value: npt.ArrayLike, kind: str) -> None:
    next(x for x in model.graph.initializer if x.name == name).CopyFrom(constant(value, kind, name))


def insert(model: onnx.ModelProto, made: list[onnx.NodeProto], reader: str) -> None:
    place = [x.name for x in model.graph.node].index(reader)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *made, *nodes[place:]])


def pair(model: onnx.ModelProto, reader: str, position: int = 0) -> None:
    """Put a pair before an input of a node."""
    target = node(model, reader)
    model.graph.initializer.extend([constant(0.1, "f4", "s"), constant(0, "i1", "z")])
    source = target.input[position]
    made = [
        helper.make_node("QuantizeLinear", [source, "s", "z"], ["new_q"], name="new_q"),
        helper.make_node("DequantizeLinear", ["new_q", "s", "z"], ["new_dq"], name="new_dq"),
    ]
    target.input[position] = "new_dq"
    insert(model, made, reader)


def custom_operator(model: onnx.ModelProto) -> None:
    node(model, "relu1").domain = "com.microsoft"


def new_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 21


def asymmetric(model: onnx.ModelProto) -> None:
    replace(model, "x_zero", 3, "i1")


def unsigned(model: onnx.ModelProto) -> None:
    replace(model, "x_zero", 0, "u1")


def no_zero_point(model: onnx.ModelProto) -> None:
    del before(model, "first", 0).input[2]


def zero_scale(model: onnx.ModelProto) -> None:
    replace(model, "r1_scale", 0, "f4")


def other_scale(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(constant(0.5, "f4", "other"))
    before(model, "second", 0).input[1] = "other"


def dangling(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("r1_q", TensorProto.INT8, None))


def scales_of_activations(model: onnx.ModelProto) -> None:
    replace(model, "r1_scale", [0.1] * residual_model.CHANNELS, "f4")
    replace(model, "r1_zero", [0] * residual_model.CHANNELS, "i1")


def one_scale_of_weights(model: onnx.ModelProto) -> None:
    replace(model, "w2_axis0_scale", 0.01, "f4")
    replace(model, "w2_axis0_zero", 0, "i1")


def wrong_axis(model: onnx.ModelProto) -> None:
    next(x for x in before(model, "second", 1).attribute if x.name == "axis").i = 1


def quantized_bias(model: onnx.ModelProto) -> None:
    model.graph.initializer.extend(
        [
            constant([0] * residual_model.CHANNELS, "i4", "b_q"),
            constant(0.1, "f4", "b_s"),
        ]
    )
    node(model, "second").input[2] = "b_dq"
    insert(model, [helper.make_node("DequantizeLinear", ["b_q", "b_s"], ["b_dq"], name="b_dq")], "second")


def float_weights(model: onnx.ModelProto) -> None:
    values = np.zeros((residual_model.CHANNELS, residual_model.CHANNELS, 3, 3), np.float32)
    model.graph.initializer.append(constant(values, "f4", "floats"))
    node(model, "second").input[1] = "floats"


def float_skip(model: onnx.ModelProto) -> None:
    node(model, "skip").input[1] = "r1"


def quantized_branch(model: onnx.ModelProto) -> None:
    pair(model, "skip", 0)


def between_sum_and_relu(model: onnx.ModelProto) -> None:
    pair(model, "relu2")


def before_softmax(model: onnx.ModelProto) -> None:
    pair(model, "softmax")


def two_types(model: onnx.ModelProto) -> None:
    replace(model, "b2", [0] * residual_model.CHANNELS, "f2")


BREAKS: list[tuple[Rule, Break, str]] = [
    (Rule.OPERATORS, custom_operator, "relu1"),
    (Rule.OPSET, new_opset, "residual"),
    (Rule.SIGNED, asymmetric, "x_q"),
    (Rule.SIGNED, unsigned, "x_q"),
    (Rule.SIGNED, no_zero_point, "first_dq0"),
    (Rule.SCALE, zero_scale, "r1_q"),
    (Rule.PAIR, other_scale, "r1_q"),
    (Rule.PAIR, dangling, "r1_q"),
    (Rule.PER_TENSOR, scales_of_activations, "r1_q"),
    (Rule.PER_CHANNEL, one_scale_of_weights, "second"),
    (Rule.PER_CHANNEL, wrong_axis, "second"),
    (Rule.BIAS, quantized_bias, "second"),
    (Rule.INPUTS, float_weights, "second"),
    (Rule.RESIDUAL, float_skip, "skip"),
    (Rule.RESIDUAL, quantized_branch, "skip"),
    (Rule.FUSION, between_sum_and_relu, "relu2"),
    (Rule.USEFUL, before_softmax, "softmax"),
    (Rule.TYPED, two_types, "residual"),
]


def test_what_is_built_keeps_every_rule() -> None:
    assert rules.check(quantized()) == []
    assert rules.check(half.convert(quantized(), KNOWN)) == []
    assert rules.check(half.convert(residual_model.graph(), KNOWN)) == []
    assert rules.check(residual_model.graph()) == []


@pytest.mark.parametrize(("rule", "break_", "name"), BREAKS, ids=[x[1].__name__ for x in BREAKS])
def test_a_broken_rule_is_found_and_named(rule: Rule, break_: Break, name: str) -> None:
    model = quantized()
    break_(model)
    found = rules.check(model)
    assert (rule, name) in {(x.rule, x.node) for x in found}
    assert rule.value in str(found[0]) or len(found) > 1


def test_every_rule_is_broken_here_once() -> None:
    assert {rule for rule, _, _ in BREAKS} == set(Rule)
