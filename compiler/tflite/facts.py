"""What a placement needs to know of a TensorFlow Lite graph. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from compiler.placement.facts import GraphFacts, NodeFact, TensorFact, Value
from compiler.tflite.model import Graph, Operator, Tensor

#: Operators whose multiply-accumulates depend on what they do inside.
_UNKNOWN: Final = frozenset({"CUSTOM", "UNIDIRECTIONAL_SEQUENCE_LSTM", "CONV_3D", "WHILE", "IF", "CALL"})


def facts(graph: Graph) -> GraphFacts:
    """Return the graph's facts; nodes are called by their first output, as they have no names."""
    tensors = [
        TensorFact(
            name=x.name or f"tensor {i}",
            dtype=x.datatype,
            shape=x.shape,
            constant=x.data is not None,
            value=x.value,
        )
        for i, x in enumerate(graph.tensors)
    ]
    return GraphFacts(
        nodes=tuple(_node(x, graph.tensors, tensors) for x in graph.operators),
        inputs=tuple(tensors[i].name for i in graph.inputs),
        outputs=tuple(tensors[i].name for i in graph.outputs),
        weights_bytes=sum(len(x.data) for x in graph.tensors if x.data is not None),
    )


def _node(operator: Operator, tensors: Sequence[Tensor], known: Sequence[TensorFact]) -> NodeFact:
    inputs = [tensors[i] for i in operator.inputs if i >= 0]
    outputs = [tensors[i] for i in operator.outputs]
    missing = TensorFact(name="")
    return NodeFact(
        name=known[operator.outputs[0]].name if operator.outputs else operator.kind,
        operator=operator.custom or operator.kind,
        version=operator.version,
        inputs=tuple(known[i] if i >= 0 else missing for i in operator.inputs),
        outputs=tuple(known[i] for i in operator.outputs),
        attributes={**operator.attributes, **_derived(operator, inputs)},
        macs=macs(operator, inputs, outputs),
        weight_bytes=sum(len(x.data) for x in inputs if x.data is not None),
    )


def _derived(operator: Operator, inputs: Sequence[Tensor]) -> dict[str, Value]:
    """Return what rules ask for and no attribute says.

    `constant_inputs`: how many inputs of a concatenation are constants. `batch_padding`: how much a padding
    adds before and after the samples. `strides`: of a strided slice.
    """
    if operator.kind == "CONCATENATION":
        return {"constant_inputs": sum(x.data is not None for x in inputs)}
    if operator.kind in {"PAD", "PADV2", "MIRROR_PAD"} and len(inputs) > 1 and inputs[1].value:
        return {"batch_padding": sum(inputs[1].value[:2])}
    if operator.kind == "STRIDED_SLICE" and len(inputs) > 3 and inputs[3].value:  # noqa: PLR2004 - the last
        return {"strides": inputs[3].value}
    return {}


def macs(operator: Operator, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int | None:
    """Return the operator's multiply-accumulates; None where they cannot be told."""
    if operator.kind in _UNKNOWN:
        return None
    count = _MACS.get(operator.kind)
    if count is None:
        return 0
    if any(min(x.shape, default=1) < 1 for x in (*inputs, *outputs)):
        return None
    return count(inputs, outputs)


def _convolution(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    return math.prod(outputs[0].shape) * math.prod(inputs[1].shape[1:])  # filter: [out, height, width, in]


def _depthwise(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    return math.prod(outputs[0].shape) * math.prod(inputs[1].shape[1:3])  # filter: [1, height, width, out]


def _transposed(inputs: Sequence[Tensor], _outputs: Sequence[Tensor]) -> int:
    # inputs: output shape, filter [out, height, width, in], data
    return math.prod(inputs[2].shape) * math.prod(inputs[1].shape[:3])


def _connected(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    return math.prod(outputs[0].shape) * inputs[1].shape[-1]  # weights: [out, in]


def _multiplied(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    return math.prod(outputs[0].shape) * inputs[0].shape[-1]


_MACS: Final[dict[str, Callable[[Sequence[Tensor], Sequence[Tensor]], int]]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transposed,
    "FULLY_CONNECTED": _connected,
    "BATCH_MATMUL": _multiplied,
}
