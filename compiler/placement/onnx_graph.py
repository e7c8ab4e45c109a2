"""The facts of an ONNX graph, as a compiler sees it: constants folded, Q/DQ pairs drawn in. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
import onnx
from onnx import numpy_helper

from compiler.models import copies, graphs, topology
from compiler.placement import cost
from compiler.placement.facts import GraphFacts, NodeFact, TensorFact, Value

QUANTIZE: Final = "QuantizeLinear"
DEQUANTIZE: Final = "DequantizeLinear"
#: Operators that run inside the node before them, in its number format.
_FUSED: Final = frozenset({"Relu", "Clip"})
#: Operators that give something else each time: never constants.
_RANDOM: Final = frozenset({"RandomNormal", "RandomUniform", "Multinomial", "Bernoulli"})
_SMALL: Final = 64
_TYPES: Final = {
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.FLOAT8E4M3FN: "FP8",
    onnx.TensorProto.FLOAT8E5M2: "FP8",
    onnx.TensorProto.INT4: "INT4",
    onnx.TensorProto.UINT4: "UINT4",
    **{
        getattr(onnx.TensorProto, f"{sign}INT{bits}"): f"{sign}INT{bits}"
        for sign in ("", "U")
        for bits in (8, 16, 32, 64)
    },
    onnx.TensorProto.BOOL: "BOOL",
}


def read(model: onnx.ModelProto, seen: Mapping[str, TensorFact] | None = None) -> GraphFacts:
    """Return the facts of a model for one sample.

    Args:
        model: with its weights.
        seen: tensors as one sample has them (`compiler.onnx_session.observed`); where there are none, a
            dynamic first dimension of an input is 1, and the rest is inferred as far as that goes.
    """
    seen = seen or {}
    fixed = _fixed(model, {name: x.shape for name, x in seen.items() if x.shape is not None})
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    versions = {x.domain or "ai.onnx": x.version for x in inferred.opset_import}
    reader = _Reader(inferred.graph, versions, {}, seen)
    nodes = _drawn_in(reader.nodes(), {x.name for x in inferred.graph.output})
    weights = {x.name for x in inferred.graph.initializer}
    return GraphFacts(
        nodes=tuple(map(_costed, nodes)),
        inputs=tuple(x.name for x in inferred.graph.input if x.name not in weights),
        outputs=tuple(x.name for x in inferred.graph.output),
        weights_bytes=sum(_stored(inferred.graph)),
    )


def _fixed(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Return a sorted copy whose dynamic dimensions have the size that one sample gives them, if it does."""
    copy = copies.copy(model)
    topology.sort(copy.graph)
    known: dict[str, int] = {}
    for value in copy.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            given = shapes[value.name][axis] if value.name in shapes else (1 if axis == 0 else -1)
            if dim.dim_value <= 0 and given >= 0:
                if dim.dim_param:
                    known[dim.dim_param] = given
                dim.dim_value = given
    for value in (*copy.graph.value_info, *copy.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in known:
                dim.dim_value = known[dim.dim_param]
    return copy


def _stored(graph: onnx.GraphProto) -> Iterator[int]:
    """Yield the bytes of each constant, also inside subgraphs."""
    for tensor in graph.initializer:
        yield _constant(tensor, tensor.name).size
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield _constant(attribute.t, "").size
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _stored(inner)


def _constant(tensor: onnx.TensorProto, name: str) -> TensorFact:
    dtype, shape = _TYPES.get(tensor.data_type, ""), tuple(tensor.dims)
    fact = TensorFact(name=name, dtype=dtype, shape=shape, constant=True)
    if dtype not in {"INT64", "INT32"} or (fact.elements or 0) > _SMALL:
        return fact
    value = tuple(int(x) for x in numpy_helper.to_array(tensor).reshape(-1))
    return msgspec.structs.replace(fact, value=value)


class _Reader:
    """One graph; subgraphs see the tensors around them."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        versions: Mapping[str, int],
        around: Mapping[str, TensorFact],
        seen: Mapping[str, TensorFact],
    ) -> None:
        self._graph: Final = graph
        self._versions: Final = versions
        self._seen: Final = seen
        self._tensors: Final[dict[str, TensorFact]] = dict(around)
        for value in (*graph.input, *graph.output, *graph.value_info):
            self._tensors[value.name] = _declared(value)
        for tensor in graph.initializer:
            self._tensors[tensor.name] = _constant(tensor, tensor.name)

    def nodes(self) -> list[NodeFact]:
        """Return the nodes that run; what only computes with constants does not."""
        found = []
        for place, node in enumerate(self._graph.node):
            inputs = tuple(self._tensor(x) for x in node.input)
            inner = any(x.HasField("g") or x.graphs for x in node.attribute)
            if not inner and node.op_type not in _RANDOM and all(x.constant for x in inputs if x.name):
                self._fold(node, inputs)
                continue
            found.append(self._node(node, place, inputs))
        return found

    def _tensor(self, name: str) -> TensorFact:
        fact = self._tensors.get(name) or TensorFact(name=name)
        if fact.constant:  # a folded Q/DQ pair is still integers, whatever it would have given
            return fact
        seen = self._seen.get(name, fact)
        return msgspec.structs.replace(fact, shape=seen.shape, dtype=seen.dtype or fact.dtype)

    def _fold(self, node: onnx.NodeProto, inputs: tuple[TensorFact, ...]) -> None:
        for name in node.output:
            fact = msgspec.structs.replace(self._tensor(name), constant=True)
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                fact = _constant(node.attribute[0].t, name)
            elif node.op_type == "Constant" and node.attribute and node.attribute[0].ints:
                fact = msgspec.structs.replace(fact, value=tuple(node.attribute[0].ints))
            elif node.op_type == DEQUANTIZE:
                fact = inputs[0]
            self._tensors[name] = fact

    def _node(self, node: onnx.NodeProto, place: int, inputs: tuple[TensorFact, ...]) -> NodeFact:
        fact = NodeFact(
            name=graphs.name_of(node, place),
            operator=node.op_type,
            version=self._versions.get(node.domain or "ai.onnx", 0),
            inputs=inputs,
            outputs=tuple(self._tensor(x) for x in node.output if x),
            attributes={x.name: y for x in node.attribute if (y := _value(x)) is not None},
        )
        branches = [x.g for x in node.attribute if x.HasField("g")]
        if not branches:
            return fact
        weights = sum(x for branch in branches for x in _stored(branch))
        return msgspec.structs.replace(fact, macs=self._inner(node, branches), weight_bytes=weights)

    def _inner(self, node: onnx.NodeProto, branches: list[onnx.GraphProto]) -> int | None:
        """Return the cost of the dearest branch; how often a loop turns is not known."""
        costs = []
        for branch in branches:
            outputs = {x.name for x in branch.output}
            inner = _drawn_in(_Reader(branch, self._versions, self._tensors, self._seen).nodes(), outputs)
            costs.append([_costed(x).macs for x in inner])
        known = [sum(x for x in each if x is not None) for each in costs if None not in each]
        return max(known) if node.op_type == "If" and len(known) == len(costs) else None


def _declared(value: onnx.ValueInfoProto) -> TensorFact:
    kind = value.type.tensor_type
    shape = tuple(x.dim_value if x.HasField("dim_value") else -1 for x in kind.shape.dim)
    return TensorFact(
        name=value.name,
        dtype=_TYPES.get(kind.elem_type, ""),
        shape=shape if kind.HasField("shape") else None,
    )


def _value(attribute: onnx.AttributeProto) -> Value | None:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, int | float):
        return value
    if isinstance(value, list) and all(isinstance(x, int | float) for x in value):
        return tuple(value)
    return None


def _costed(node: NodeFact) -> NodeFact:
    found = cost.counted(node)
    macs = found.macs if node.operator in cost.FORMULAS else node.macs
    return msgspec.structs.replace(found, macs=macs, weight_bytes=found.weight_bytes + node.weight_bytes)


def _drawn_in(nodes: list[NodeFact], outputs: set[str]) -> list[NodeFact]:
    """Return the nodes without the Q/DQ pairs between them: the numbers that they exchange are integers.

    What remains of them stands where floats come in or go out.
    """
    readers = Counter(x.name for node in nodes for x in node.inputs if not x.constant)
    integer: dict[str, TensorFact] = {}
    gone = set()
    for place, node in enumerate(nodes):
        if node.operator == DEQUANTIZE and node.outputs[0].name not in outputs:
            integer[node.outputs[0].name] = integer.get(node.inputs[0].name, node.inputs[0])
            gone.add(place)
    made = {x.name: place for place, node in enumerate(nodes) for x in node.outputs}
    for place, node in enumerate(nodes):
        source = node.inputs[0].name if node.inputs else ""
        alone = source in made and readers[source] == 1 and source not in outputs and source not in integer
        if node.operator == QUANTIZE and alone:
            integer[source] = node.outputs[0]
            gone.add(place)
    _spread(nodes, integer, readers)
    kept = [node for place, node in enumerate(nodes) if place not in gone]
    return [
        msgspec.structs.replace(
            x,
            inputs=tuple(integer.get(y.name, y) for y in x.inputs),
            outputs=tuple(integer.get(y.name, y) for y in x.outputs),
        )
        for x in kept
    ]


def _spread(nodes: list[NodeFact], integer: dict[str, TensorFact], readers: Mapping[str, int]) -> None:
    """Give what a fused activation reads the number format of what it writes."""
    for node in reversed(nodes):
        if node.operator in _FUSED and node.outputs[0].name in integer and readers[node.inputs[0].name] == 1:
            source, result = node.inputs[0], integer[node.outputs[0].name]
            integer.setdefault(source.name, msgspec.structs.replace(source, dtype=result.dtype))
