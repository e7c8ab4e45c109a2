"""Typing a model in float16, operator by operator, where half precision holds its numbers. Pure.

TensorRT 11 computes in the types that stand in the file (NVIDIA TensorRT documentation, "Strongly typed
networks"). Inputs and outputs stay float32, as do operators that sum, exponentiate or divide over many
values, and those whose numbers on calibration data come near float16's largest.

A tensor's own name stays its float32 one: what an operator gives in float16 has a name of its own, and a
Cast makes the float32 tensor only where something reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compiler.errors import CompileError
from compiler.models import copies
from compiler.models.graphs import DEQUANTIZE, QUANTIZE, Graph, captured
from compiler.tensorrt import opsets

#: Operators all of whose float inputs and outputs have one type, and whose numbers stay of a size.
HALF: Final = frozenset({
    "Abs", "Add", "AveragePool", "BatchNormalization", "Ceil", "Clip", "Concat", "Conv", "ConvTranspose",
    "DepthToSpace", "Div", "Elu", "Erf", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND",
    "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pad", "ReduceMax", "ReduceMin",
    "Relu", "Reshape", "Resize", "Round", "Selu", "Sigmoid", "Sign", "Slice", "Softplus", "Softsign",
    "SpaceToDepth", "Split", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
#: Only these inputs are of the operator's own type.
_TYPED_INPUTS: Final = {"Resize": 1}
#: Half of float16's largest number: what calibration data show, other data may exceed.
LIMIT: Final = 32752.0
#: Below this float16 loses digits, and a scale with lost digits shifts everything.
SMALLEST_SCALE: Final = float(np.finfo(np.float16).tiny)


def convert(model: onnx.ModelProto, magnitudes: Mapping[str, float]) -> onnx.ModelProto:
    """Return the model typed in float16 where that holds.

    Args:
        model: with names for its nodes; it may hold Q/DQ pairs.
        magnitudes: the largest absolute value of each float tensor, by name.

    Raises:
        CompileError: nothing in it can be float16, or its Q/DQ need an operator set it cannot be raised to.
    """
    quantized = any(x.op_type == QUANTIZE for x in model.graph.node)
    model = opsets.between(copies.copy(model), opsets.FLOAT16_PAIRS if quantized else 1)
    _round_scales(model)
    chosen = choose(model, magnitudes)
    if not chosen:
        raise CompileError("no operator can be float16")
    _Typing(model, chosen).run()
    return model


def _round_scales(model: onnx.ModelProto) -> None:
    """Round the scales of activations as float16 does, so that Q and DQ agree whichever type each has."""
    scales = {x.input[1] for x in model.graph.node if x.op_type == QUANTIZE}
    for tensor in model.graph.initializer:
        if tensor.name in scales and tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor)
            if value.min() >= SMALLEST_SCALE and value.max() <= LIMIT:
                rounded = value.astype(np.float16).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))


def choose(model: onnx.ModelProto, magnitudes: Mapping[str, float]) -> frozenset[int]:
    """Return the places of the nodes that become float16."""
    graph, types = Graph(model), _types(model)

    def fits(node: onnx.NodeProto) -> bool:
        names = [x for x in (*_typed_inputs(node), *node.output) if types.get(x) == TensorProto.FLOAT]
        return bool(names) and all(_holds(graph, x, magnitudes) for x in names)

    found = {place for place, node in enumerate(graph.nodes) if node.op_type in HALF and fits(node)}
    return frozenset(found | _pairs(graph, found))


def _pairs(graph: Graph, chosen: set[int]) -> set[int]:
    """Return the Q/DQ nodes that become float16: each as what it is fused with."""
    places = {id(x): i for i, x in enumerate(graph.nodes)}
    found = set()
    for place, node in enumerate(graph.nodes):
        if node.op_type == DEQUANTIZE:
            readers = graph.readers[node.output[0]]
            if readers and all(places[id(x)] in chosen for x in readers):
                found.add(place)
        elif node.op_type == QUANTIZE:
            maker, scale = graph.maker(node.input[0]), graph.array(node.input[1])
            small = scale is None or float(np.asarray(scale, np.float64).min()) < SMALLEST_SCALE
            if maker is not None and places[id(maker)] in chosen and not small:
                found.add(place)
    return found


def _holds(graph: Graph, name: str, magnitudes: Mapping[str, float]) -> bool:
    """Return whether float16 is known to hold a tensor's numbers."""
    constant = graph.array(name)
    if constant is not None:
        return constant.size == 0 or float(np.abs(constant).max()) <= LIMIT
    source = graph.dequantized(name)
    if source is not None:
        scale = graph.array(source.input[1])
        return scale is not None and float(np.asarray(scale, np.float64).min()) >= SMALLEST_SCALE
    return magnitudes.get(name, np.inf) <= LIMIT


def _types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    types = {x.name: x.type.tensor_type.elem_type for x in values if x.type.HasField("tensor_type")}
    return types | {x.name: x.data_type for x in inferred.initializer}


def _typed_inputs(node: onnx.NodeProto) -> list[str]:
    return list(node.input[: _TYPED_INPUTS.get(node.op_type)])


class _Typing:
    """Rewrites one model, in place."""

    def __init__(self, model: onnx.ModelProto, chosen: frozenset[int]) -> None:
        self._graph: Final = model.graph
        self._chosen: Final = chosen
        self._types: Final = _types(model)
        self._constants: Final = {x.name: x for x in model.graph.initializer}
        self._halves: Final[dict[str, str]] = {}
        self._made: Final[set[str]] = set()
        self._nodes: Final[list[onnx.NodeProto]] = []

    def run(self) -> None:
        """Type the nodes in their order."""
        wanted = self._wanted()
        for place, node in enumerate(self._graph.node):
            if place in self._chosen:
                self._half(node, wanted)
            else:
                self._nodes.append(node)
        del self._graph.node[:], self._graph.value_info[:]
        self._graph.node.extend(self._nodes)
        read = {x for node in self._nodes for x in (*node.input, *captured(node))}
        read |= {x.name for x in self._graph.output}
        for name in [x for x in self._constants if x not in read]:
            self._graph.initializer.remove(self._constants[name])

    def _wanted(self) -> set[str]:
        """Return the tensors that something reads in float32."""
        wanted = {x.name for x in self._graph.output}
        for place, node in enumerate(self._graph.node):
            wanted |= set(captured(node))
            wanted |= set(node.input[len(_typed_inputs(node)) :] if place in self._chosen else node.input)
        return wanted

    def _half(self, node: onnx.NodeProto, wanted: set[str]) -> None:
        for position, name in enumerate(_typed_inputs(node)):
            if name and self._types.get(name) == TensorProto.FLOAT:
                node.input[position] = self._half_of(name)
        self._nodes.append(node)
        for position, name in enumerate(node.output):
            if name and self._types.get(name) == TensorProto.FLOAT:
                node.output[position] = self._halves[name] = f"{name}_half"
                if name in wanted:
                    self._cast(f"{name}_half", name, TensorProto.FLOAT)

    def _half_of(self, name: str) -> str:
        if name not in self._halves:
            half = self._halves[name] = f"{name}_half"
            if name in self._constants:
                values = numpy_helper.to_array(self._constants[name]).astype(np.float16)
                self._graph.initializer.append(numpy_helper.from_array(values, half))
            else:
                self._cast(name, half, TensorProto.FLOAT16)
        return self._halves[name]

    def _cast(self, name: str, out: str, kind: int) -> None:
        self._nodes.append(helper.make_node("Cast", [name], [out], name=f"{out}_cast", to=kind))
