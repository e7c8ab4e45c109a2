"""A float model in which every node's quantization can be switched on and off while it runs.

Building one model per question costs more than asking: here each tensor that a quantizer would round passes a
Q/DQ pair beside itself, and an input of the model, one truth value per tensor, picks which of the two goes
on. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from compiler.models import copies
from compiler.quantizing import weight_only

#: The input that switches.
MASK: Final = "kedge_switches"
#: Operators that move values or choose among them, that are drawn into the node before, or that no recipe
#: quantizes.
MOVING: Final = frozenset(
    {
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout", "Cast", "Expand"),
        *(
            "Tile",
            "Slice",
            "Split",
            "Gather",
            "GatherElements",
            "GatherND",
            "Pad",
            "DepthToSpace",
            "SpaceToDepth",
        ),
        *("MaxPool", "GlobalMaxPool", "Relu", "Clip", "Where", "If", "Loop", "Scan", "LSTM", "GRU", "RNN"),
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    }
)
#: Operators that a quantizer draws into the node before them.
FUSED: Final = frozenset({"Relu", "Clip"})

_DOMAIN: Final = "com.microsoft"

Range = tuple[float, float]


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How nodes are quantized.

    Attributes:
        activations: integer type of activations, such as "uint8" or "int16".
        symmetric: zero points are in the middle.
        per_channel: weights have a scale per output channel.
    """

    activations: str
    symmetric: bool = False
    per_channel: bool = True

    @property
    def bits(self) -> int:
        """How many bits activations have."""
        return 16 if self.activations.endswith("16") else 8


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A node that can be quantized.

    Attributes:
        tensors: what is rounded when it is: its weights, what it reads, what it makes.
    """

    name: str
    operator: str
    tensors: tuple[str, ...]


class Switched(msgspec.Struct, frozen=True, kw_only=True):
    """A model with switches.

    Attributes:
        model: takes `MASK` besides its own inputs.
        parts: its nodes that can be quantized, in the order in which they run.
        tensors: what can be rounded, in the order of the switches.
    """

    model: onnx.ModelProto
    parts: tuple[Part, ...]
    tensors: tuple[str, ...]

    def mask(self, parts: Sequence[Part]) -> npt.NDArray[np.bool_]:
        """Return the switches that quantize exactly these nodes."""
        chosen = {x for part in parts for x in part.tensors}
        return np.array([x in chosen for x in self.tensors], np.bool_)


def parts(model: onnx.ModelProto) -> tuple[Part, ...]:
    """Return the nodes of the outermost graph that can be quantized.

    Args:
        model: with the types of its tensors inferred.
    """
    graph = model.graph
    floats = {x.name for x in (*graph.input, *graph.output, *graph.value_info) if _is_float(x)}
    weights = {x.name for x in graph.initializer if x.data_type == onnx.TensorProto.FLOAT}
    fused = _fused(graph)
    found = []
    for node in graph.node:
        made = [x for x in node.output if x in floats]
        read = [x for x in node.input if x in floats]
        if node.op_type in MOVING or not made or not read:
            continue
        kernels = [x for x in node.input[1:2] if x in weights and node.op_type in weight_only.AXES]
        results = [fused.get(x, x) for x in made[:1]]
        tensors = tuple(dict.fromkeys([*read, *kernels, *results]))
        found.append(Part(name=node.name, operator=node.op_type, tensors=tensors))
    return tuple(found)


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def _fused(graph: onnx.GraphProto) -> dict[str, str]:
    """Return for each tensor that only an activation reads what that activation makes of it."""
    readers = Counter(x for node in graph.node for x in node.input)
    readers.update(x.name for x in graph.output)
    return {
        node.input[0]: node.output[0]
        for node in graph.node
        if node.op_type in FUSED and readers[node.input[0]] == 1
    }


def switched(
    model: onnx.ModelProto, found: Sequence[Part], ranges: Mapping[str, Range], recipe: Recipe
) -> Switched:
    """Return the model with a switch for each tensor.

    Args:
        model: float.
        found: its parts.
        ranges: of activations; those that have none are never rounded.
        recipe: how they are quantized.
    """
    copy = copies.copy(model)
    weights = {x.name: x for x in copy.graph.initializer}
    tensors = tuple(
        x for x in dict.fromkeys(y for part in found for y in part.tensors) if x in ranges or x in weights
    )
    inputs = {x.name for x in copy.graph.input}
    before: list[onnx.NodeProto] = []
    after: dict[str, list[onnx.NodeProto]] = {}
    for index, name in enumerate(tensors):
        plain, given = (name, f"{name}:picked") if name in inputs else (f"{name}:float", name)
        pick = _pick(copy.graph, name, index, plain, given)
        if name in weights:
            axis = _axis(model.graph, name) if recipe.per_channel else None
            _round_weight(copy.graph, weights[name], axis)
            before += pick
            continue
        pair = _pair(copy.graph, name, plain, ranges[name], recipe)
        if name in inputs:
            _rename(copy.graph.node, name, given)
            before += [*pair, *pick]
        else:
            after[name] = [*pair, *pick]
    _interleave(copy.graph, before, after)
    if _DOMAIN not in {x.domain for x in copy.opset_import}:
        copy.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    copy.graph.input.append(helper.make_tensor_value_info(MASK, onnx.TensorProto.BOOL, [len(tensors)]))
    kept = tuple(
        msgspec.structs.replace(x, tensors=tuple(y for y in x.tensors if y in tensors)) for x in found
    )
    return Switched(model=copy, parts=tuple(x for x in kept if x.tensors), tensors=tensors)


def _pick(graph: onnx.GraphProto, name: str, index: int, plain: str, given: str) -> list[onnx.NodeProto]:
    """Return what passes on a tensor as it is or rounded, as one value of the mask says."""
    graph.initializer.append(numpy_helper.from_array(np.array(index, np.int64), f"{name}:index"))
    return [
        helper.make_node("Gather", [MASK, f"{name}:index"], [f"{name}:on"]),
        helper.make_node("Where", [f"{name}:on", f"{name}:rounded", plain], [given]),
    ]


def _rename(nodes: Sequence[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        node.input[:] = [new if x == old else x for x in node.input]


def _interleave(
    graph: onnx.GraphProto, before: list[onnx.NodeProto], after: Mapping[str, list[onnx.NodeProto]]
) -> None:
    """Put each switch behind the node that makes its tensor, which then goes by another name."""
    nodes = list(before)
    for node in graph.node:
        more = [y for x in node.output for y in after.get(x, ())]
        node.output[:] = [f"{x}:float" if x in after else x for x in node.output]
        nodes += [node, *more]
    del graph.node[:]
    graph.node.extend(nodes)


def _axis(graph: onnx.GraphProto, name: str) -> int:
    """Return the axis of a weight's output channels."""
    dims = next(len(x.dims) for x in graph.initializer if x.name == name)
    return next(weight_only.channel_axis(x, dims) for x in graph.node if name in x.input)


def _round_weight(graph: onnx.GraphProto, tensor: onnx.TensorProto, axis: int | None) -> None:
    name, values = tensor.name, numpy_helper.to_array(tensor).astype(np.float32)
    rows = values[np.newaxis] if axis is None else np.moveaxis(values, axis, 0)
    integers, scales = weight_only.per_channel(rows, 0)
    rounded = integers.astype(np.float32) * scales.reshape([-1, *[1] * (rows.ndim - 1)])
    rounded = rounded[0] if axis is None else np.ascontiguousarray(np.moveaxis(rounded, 0, axis))
    tensor.name = f"{name}:float"
    graph.initializer.append(numpy_helper.from_array(rounded, f"{name}:rounded"))


def _pair(
    graph: onnx.GraphProto, name: str, plain: str, bounds: Range, recipe: Recipe
) -> list[onnx.NodeProto]:
    scale, zero = _scale(bounds, recipe)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(scale, np.float32), f"{name}:scale"),
            numpy_helper.from_array(np.array(zero, np.dtype(recipe.activations)), f"{name}:zero"),
        ]
    )
    how = [f"{name}:scale", f"{name}:zero"]
    # ONNX has 16 bits since operator set 21, ONNX Runtime's own operators have always had them.
    return [
        helper.make_node("QuantizeLinear", [plain, *how], [f"{name}:integer"], domain=_DOMAIN),
        helper.make_node("DequantizeLinear", [f"{name}:integer", *how], [f"{name}:rounded"], domain=_DOMAIN),
    ]


def _scale(bounds: Range, recipe: Recipe) -> tuple[float, int]:
    """Return scale and zero point of the integers over a range that holds 0."""
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    half = 1 << (recipe.bits - 1)
    middle = 0 if recipe.activations.startswith("int") else half
    if recipe.symmetric:
        return max(-low, high, 1e-12) / (half - 1), middle
    scale = max(high - low, 1e-12) / (2 * half - 1)
    return scale, round(-low / scale) - (half - middle)
