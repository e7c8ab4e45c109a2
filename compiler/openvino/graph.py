"""The facts of an OpenVINO model: constants folded, FakeQuantize drawn into the operators that it feeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from compiler.openvino.library import Model
from compiler.placement.cost import counted
from compiler.placement.facts import GraphFacts, NodeFact, Scalar, TensorFact, Value

#: Operators that compute nothing: a quantizer before them is as good as one behind.
MOVING: Final = frozenset(
    {
        "Concat",
        "DepthToSpace",
        "Gather",
        "MaxPool",
        "Pad",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "StridedSlice",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "VariadicSplit",
    }
)
#: Operators that run inside the node before them, in its number format.
_INSIDE: Final = frozenset({"Add", "Clamp", "Relu"})
_INTEGERS: Final = frozenset({"INT8", "UINT8"})
_SMALL: Final = 64
_INT8_LEVELS: Final = 256
_ENDS: Final = frozenset({"Parameter", "Result"})
_TYPES: Final = {
    "f64": "FP64",
    "f32": "FP32",
    "f16": "FP16",
    "bf16": "BF16",
    "f8e4m3": "FP8",
    "f8e5m2": "FP8",
    "boolean": "BOOL",
    **{f"i{bits}": f"INT{bits}" for bits in (4, 8, 16, 32, 64)},
    **{f"u{bits}": f"UINT{bits}" for bits in (4, 8, 16, 32, 64)},
}


def read(model: Model, *, half: bool = False) -> GraphFacts:
    """Return the facts of a model, for one sample where its shapes are static.

    Args:
        model: with its weights.
        half: the device computes in float16 whatever float the model has.
    """
    tensors: dict[tuple[str, int], TensorFact] = {}
    nodes: list[NodeFact] = []
    weights: dict[str, int] = {}
    formats: dict[str, str] = {}  # by node: the number format that it computes in
    for node in model.get_ordered_ops():
        kind, key = node.get_type_name(), node.get_name()
        inputs = tuple(tensors[x] for x in _sources(node))
        outputs = tuple(_tensor(node, i) for i in range(node.get_output_size()))
        if half:
            outputs = tuple(
                msgspec.structs.replace(x, dtype="FP16" if x.dtype == "FP32" else x.dtype) for x in outputs
            )
        if kind == "Constant":
            weights[key] = outputs[0].size
            outputs = (_constant(node, outputs[0]),)
        elif inputs and all(x.constant for x in inputs):
            # What unpacks weights is done when the model is loaded.
            outputs = tuple(msgspec.structs.replace(x, constant=True, dtype=inputs[0].dtype) for x in outputs)
        elif kind == "FakeQuantize":
            outputs = (msgspec.structs.replace(outputs[0], dtype=_quantized(node, inputs[0])),)
        elif kind not in _ENDS:
            inputs = _fused(kind, inputs, [formats.get(x, "") for x, _ in _sources(node)])
            formats[key] = next((x.dtype for x in inputs if not x.constant), "")
            if kind in MOVING and formats[key] in _INTEGERS:
                outputs = tuple(msgspec.structs.replace(x, dtype=formats[key]) for x in outputs)
            nodes.append(_node(node, inputs, outputs))
        tensors.update({(key, i): x for i, x in enumerate(outputs)})
    return GraphFacts(
        nodes=tuple(nodes),
        inputs=tuple(x.get_any_name() for x in model.inputs),
        outputs=tuple(x.get_any_name() for x in model.outputs),
        weights_bytes=sum(weights.values()),
    )


def _fused(kind: str, inputs: tuple[TensorFact, ...], formats: Sequence[str]) -> tuple[TensorFact, ...]:
    """Return the inputs of a bias or an activation as the node before it has them, which it runs inside."""
    moving = [i for i, x in enumerate(inputs) if not x.constant]
    if kind not in _INSIDE or len(moving) != 1 or formats[moving[0]] not in _INTEGERS:
        return inputs
    before = formats[moving[0]]
    return tuple(x if x.constant else msgspec.structs.replace(x, dtype=before) for x in inputs)


def _sources(node: Model) -> Iterator[tuple[str, int]]:
    for value in node.input_values():
        yield value.get_node().get_name(), value.get_index()


def _tensor(node: Model, index: int) -> TensorFact:
    output = node.output(index)
    shape = output.get_partial_shape()
    return TensorFact(
        name=f"{node.get_friendly_name()}:{index}",
        dtype=_TYPES.get(output.get_element_type().to_string(), ""),
        shape=tuple(x.get_length() if x.is_static else -1 for x in shape) if shape.rank.is_static else None,
    )


def _constant(node: Model, fact: TensorFact) -> TensorFact:
    known = fact.dtype in {"INT32", "INT64"} and (fact.elements or 0) <= _SMALL
    value = tuple(int(x) for x in node.data.reshape(-1)) if known else None
    return msgspec.structs.replace(fact, constant=True, value=value)


def _quantized(node: Model, source: TensorFact) -> str:
    return "INT8" if node.get_attributes()["levels"] <= _INT8_LEVELS else source.dtype


def _node(node: Model, inputs: tuple[TensorFact, ...], outputs: tuple[TensorFact, ...]) -> NodeFact:
    about = node.get_type_info()
    attributes = node.get_attributes()
    return counted(
        NodeFact(
            name=node.get_friendly_name(),
            operator=node.get_type_name(),
            version=int(about.version_id.removeprefix("opset") or 0),
            inputs=inputs,
            outputs=outputs,
            attributes={name: x for name, value in attributes.items() if (x := _value(value)) is not None},
        )
    )


def _value(value: object) -> Value | None:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items: tuple[Scalar, ...] = tuple(x for x in value if isinstance(x, bool | int | float | str))
        return items if len(items) == len(value) else None
    return None
