"""Proving that a model keeps TensorRT's rules for quantized and typed networks. Pure.

Sources: NVIDIA TensorRT documentation, "Explicit quantization" (Q/DQ processing, layer-placement
recommendations, limitations) and "Strongly typed networks"; onnx-tensorrt, supported operators.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
import numpy as np
import onnx

from compiler.errors import one_line
from compiler.models.graphs import (
    ACTIVATIONS,
    COMMUTING,
    DEQUANTIZE,
    QUANTIZE,
    WEIGHTED,
    Graph,
    attribute,
    channel_axis,
)
from compiler.tensorrt import opsets

#: Those that the ONNX parser of TensorRT 10.3 reads (onnx-tensorrt 10, supported operators).
OPSETS: Final = range(9, opsets.NEWEST + 1)
#: Operators with int8 kernels: a pair before any other costs accuracy for nothing.
INT8: Final = frozenset(
    {*WEIGHTED, *COMMUTING, "Add", "AveragePool", "Concat", "GlobalAveragePool", "Resize"}
)


class Rule(str, enum.Enum):
    """What must hold, in words."""

    OPERATORS = "operators of the ONNX standard alone"
    OPSET = "an operator set that TensorRT 10.3 reads"
    SIGNED = "signed int8 with zero point 0"
    SCALE = "a constant, positive scale of a float type"
    PAIR = "Q followed by DQ of the same scale, and by nothing else"
    PER_TENSOR = "one scale per activation tensor"
    PER_CHANNEL = "a scale per output channel of the weights"
    BIAS = "biases in float"
    INPUTS = "all inputs of a weighted operator quantized, or none"
    RESIDUAL = "of a residual addition the skip input quantized, and the other fused with its operator"
    FUSION = "no pair between an operator and what is fused with it"
    USEFUL = "pairs only where int8 kernels are"
    TYPED = "one float type per operator"


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that does not hold.

    Attributes:
        node: the node's name or, where it has none, its first output.
        found: what stands there instead.
    """

    rule: Rule
    node: str
    found: str

    def __str__(self) -> str:
        """Name node and rule."""
        return f"{self.node}: expected {self.rule.value}; got {self.found}"


Found = Iterator[tuple[onnx.NodeProto, str]]


def check(model: onnx.ModelProto) -> list[Violation]:
    """Return every violation, in the order of the rules; none for a model that TensorRT takes as meant."""
    found = list(_standard(model))
    graph = Graph(model)
    for rule, look in _CHECKS.items():
        found += [Violation(rule=rule, node=_name(node), found=text) for node, text in look(graph)]
    return found + list(_typed(model))


def _name(node: onnx.NodeProto) -> str:
    return node.name or (node.output[0] if node.output else node.op_type)


def _standard(model: onnx.ModelProto) -> Iterator[Violation]:
    for opset in model.opset_import:
        if opset.domain in {"", "ai.onnx"} and opset.version not in OPSETS:
            yield Violation(rule=Rule.OPSET, node=model.graph.name, found=str(opset.version))
    for node in model.graph.node:
        if node.domain not in {"", "ai.onnx"}:
            yield Violation(rule=Rule.OPERATORS, node=_name(node), found=f"{node.domain}.{node.op_type}")


def _typed(model: onnx.ModelProto) -> Iterator[Violation]:
    """ONNX's type rules are those of strong typing: an operator's float inputs have one type."""
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        yield Violation(rule=Rule.TYPED, node=model.graph.name, found=one_line(error))


def _conversions(graph: Graph) -> Iterator[onnx.NodeProto]:
    return (x for x in graph.nodes if x.op_type in {QUANTIZE, DEQUANTIZE})


def _signed(graph: Graph) -> Found:
    for node in _conversions(graph):
        zero = graph.array(node.input[2]) if len(node.input) > 2 else None  # noqa: PLR2004 - the third input
        if zero is None:
            yield node, "no constant zero point, which means uint8"
        elif zero.dtype != np.int8 or np.any(zero):
            yield node, f"{zero.dtype} with zero point {zero.reshape(-1)[np.argmax(zero != 0)]}"


def _scale(graph: Graph) -> Found:
    for node in _conversions(graph):
        scale = graph.array(node.input[1])
        if scale is None:
            yield node, "a scale that is computed"
        elif scale.dtype not in {np.dtype(np.float32), np.dtype(np.float16)}:
            yield node, f"a scale of type {scale.dtype}"
        elif not (np.isfinite(scale).all() and scale.min(initial=np.inf) > 0):
            yield node, f"scale {scale.min()}"


def _pair(graph: Graph) -> Found:
    for node in graph.nodes:
        if node.op_type == QUANTIZE:
            readers = graph.readers[node.output[0]]
            if not readers or node.output[0] in graph.outputs:
                yield node, "a Q without a DQ"
            other = next((x for x in readers if x.op_type != DEQUANTIZE), None)
            if other is not None:
                yield node, f"{other.op_type} {_name(other)!r} behind a Q"
            elif any(not _equal(graph, x.input[1], node.input[1]) for x in readers):
                yield node, "a DQ of another scale"
        elif node.op_type == DEQUANTIZE and not graph.constant(node.output[0]):
            maker = graph.maker(node.input[0])
            if maker is None or maker.op_type != QUANTIZE:
                yield node, "a DQ of what no Q made"


def _equal(graph: Graph, one: str, other: str) -> bool:
    first, second = graph.array(one), graph.array(other)
    return first is not None and second is not None and np.array_equal(first, second)


def _per_tensor(graph: Graph) -> Found:
    for node in _conversions(graph):
        scale = graph.array(node.input[1])
        constant = node.op_type == DEQUANTIZE and graph.constant(node.output[0])
        if not constant and scale is not None and scale.size > 1:
            yield node, f"{scale.size} scales"


def _weighted(graph: Graph) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto | None, onnx.NodeProto | None]]:
    """Yield weighted operators with what dequantizes their input and their weights."""
    for node in graph.nodes:
        if node.op_type in WEIGHTED:
            yield node, graph.dequantized(node.input[0]), graph.dequantized(node.input[1])


def _per_channel(graph: Graph) -> Found:
    for node, _, weights in _weighted(graph):
        if weights is None or not graph.constant(node.input[1]):
            continue
        shape, scale = graph.constants[weights.input[0]].dims, graph.array(weights.input[1])
        axis = channel_axis(node, len(shape))
        if scale is None or axis is None or shape[axis] == 1:
            continue
        got = attribute(weights, "axis", 1) % len(shape)
        if scale.size != shape[axis] or got != axis:
            yield node, f"{scale.size} scales along axis {got}, not {shape[axis]} along axis {axis}"


def _bias(graph: Graph) -> Found:
    for node in graph.nodes:
        if node.op_type in WEIGHTED and len(node.input) > 2:  # noqa: PLR2004 - the third is the bias
            source = graph.dequantized(node.input[2])
            if source is not None:
                yield node, f"a bias from {_name(source)!r}"
        elif node.op_type == DEQUANTIZE:
            kind = graph.constants.get(node.input[0])
            if kind is not None and kind.data_type == onnx.TensorProto.INT32:
                yield node, "an int32 constant"


def _inputs(graph: Graph) -> Found:
    for node, data, weights in _weighted(graph):
        if (data is None) != (weights is None):
            yield node, f"only its {'input' if weights is None else 'weights'} quantized"


def _residual(graph: Graph) -> Found:
    for node in graph.nodes:
        if node.op_type != "Add" or any(graph.constant(x) for x in node.input):
            continue
        fed = [_fed(graph, x) for x in node.input]
        quantized = [graph.dequantized(x) is not None for x in node.input]
        if any(fed) and not any(quantized):
            yield node, "neither input quantized"
        elif any(_split(graph, x) for x in node.input) and not any(fed):
            yield node, "a pair between it and the operator that it could be fused with"


def _fed(graph: Graph, name: str) -> bool:
    """Return whether a tensor is an int8 operator's own output, its bias added, for one reader alone."""
    maker = graph.maker(name)
    if maker is None or graph.only_reader(name) is None:
        return False
    if maker.op_type in WEIGHTED:
        return graph.dequantized(maker.input[0]) is not None
    biased = maker.op_type == "Add" and any(graph.constant(x) for x in maker.input)
    return biased and any(_fed(graph, x) for x in maker.input if not graph.constant(x))


def _split(graph: Graph, name: str) -> bool:
    """Return whether a pair for this reader alone keeps an int8 operator from being fused with it."""
    source = graph.dequantized(name)
    quantize = graph.maker(source.input[0]) if source is not None else None
    return (
        quantize is not None
        and graph.only_reader(quantize.output[0]) is not None
        and _fed(graph, quantize.input[0])
    )


def _fusion(graph: Graph) -> Found:
    for node in graph.nodes:
        if node.op_type in ACTIVATIONS:
            source = graph.dequantized(node.input[0])
            quantize = graph.maker(source.input[0]) if source is not None else None
            before = graph.maker(quantize.input[0]) if quantize is not None else None
            if before is not None and before.op_type in {*WEIGHTED, "Add"}:
                yield node, f"a pair behind {before.op_type} {_name(before)!r}"


def _useful(graph: Graph) -> Found:
    for node in graph.nodes:
        if node.op_type == DEQUANTIZE:
            readers = graph.readers[node.output[0]]
            other = next((x for x in readers if x.op_type not in {*INT8, *ACTIVATIONS}), None)
            if other is not None:
                yield other, f"{other.op_type} behind a DQ"
            elif not readers or node.output[0] in graph.outputs:
                yield node, "a DQ before nothing"


_CHECKS: Final[dict[Rule, Callable[[Graph], Found]]] = {
    Rule.SIGNED: _signed,
    Rule.SCALE: _scale,
    Rule.PAIR: _pair,
    Rule.PER_TENSOR: _per_tensor,
    Rule.PER_CHANNEL: _per_channel,
    Rule.BIAS: _bias,
    Rule.INPUTS: _inputs,
    Rule.RESIDUAL: _residual,
    Rule.FUSION: _fusion,
    Rule.USEFUL: _useful,
}
