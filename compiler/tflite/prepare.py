"""Bringing an ONNX model into the form that becomes an integer TensorFlow Lite graph without detours.

The Edge TPU runs a prefix of the graph: one operator that it does not take sends all after it to the CPU. So
what exporters write in a roundabout way is said directly first. Every rewriting is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compiler import onnx_session
from compiler.errors import CompileError
from compiler.models import copies
from compiler.tensors import Arrays
from compiler.tflite import activations

_SPATIAL: Final = [2, 3]
_RANK: Final = 4
_ELEMENTWISE: Final = frozenset({"Add", "Div", "Max", "Min", "Mul", "Sub"})


def prepare(model: onnx.ModelProto, sample: Arrays, folder: Path) -> onnx.ModelProto:
    """Return the model with every shape fixed, constants folded, and rewritten.

    Args:
        model: in the normal form.
        sample: what is fed for one sample: its shapes become the model's.
        folder: for intermediate files.

    Raises:
        CompileError: the size of an output depends on what is fed; names it.
    """
    folded = _folded(copies.fixed(model, {name: x.shape for name, x in sample.items()}), folder)
    for rewriting in _REWRITINGS:
        rewriting(folded)
    return _inferred(folded)


def _folded(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    source, folded = folder / "fixed.onnx", folder / "folded.onnx"
    onnx.save(model, source)
    found = onnx_session.optimized(source, folded)
    used = {x.domain for x in found.graph.node} | {""}
    opsets = [x for x in found.opset_import if x.domain in used]
    del found.opset_import[:]
    found.opset_import.extend(opsets)
    return found


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for value in inferred.graph.output:
        dims = value.type.tensor_type.shape.dim
        if not all(x.HasField("dim_value") and x.dim_value > 0 for x in dims):
            raise CompileError(
                f"output {value.name!r}: the target takes fixed shapes only; got a dynamic one"
            )
    return inferred


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    return {x.name: x for x in graph.initializer}


def _readers(graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto]:
    return [x for x in graph.node if name in x.input]


def _attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    return next((helper.get_attribute_value(x) for x in node.attribute if x.name == name), default)


def _replace(graph: onnx.GraphProto, old: onnx.NodeProto, new: list[onnx.NodeProto]) -> None:
    nodes = [y for x in graph.node for y in (new if x is old else [x])]
    copies = [onnx.NodeProto.FromString(x.SerializeToString()) for x in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _each(graph: onnx.GraphProto, operator: str) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of one kind while the graph changes under way."""
    for name in [x.output[0] for x in graph.node if x.op_type == operator]:
        found = next((x for x in graph.node if x.output[0] == name), None)
        if found is not None and found.op_type == operator:
            yield found


def _pool_means(model: onnx.ModelProto) -> None:
    """A mean over height and width is a global pooling, which no layout change hides."""
    graph = model.graph
    constants, shapes = _constants(graph), _shapes(model)
    for node in _each(graph, "ReduceMean"):
        axes = _attribute(node, "axes", None)
        if axes is None and len(node.input) > 1 and node.input[1] in constants:
            axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
        picture = shapes.get(node.input[0], [])
        if not isinstance(axes, list) or sorted(x % _RANK for x in axes) != _SPATIAL or len(picture) != _RANK:
            continue
        name, out = node.name or node.output[0], node.output[0]
        if _attribute(node, "keepdims", 1):
            _replace(graph, node, [helper.make_node("GlobalAveragePool", [node.input[0]], [out], name)])
            continue
        pooled, shape = f"{out}_pooled", f"{out}_shape"
        graph.initializer.append(numpy_helper.from_array(np.array(picture[:2], np.int64), shape))
        parts = [
            helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name),
            helper.make_node("Reshape", [pooled, shape], [out], f"{name}_flat"),
        ]
        _replace(graph, node, parts)


def _pool_beside(model: onnx.ModelProto) -> None:
    """A global pooling whose input is read elsewhere too gets a window.

    So it stands in squeeze-and-excitation blocks, where the converter would turn the picture for it and back.
    """
    graph = model.graph
    shapes = _shapes(model)
    for node in _each(graph, "GlobalAveragePool"):
        picture = shapes.get(node.input[0], [])
        if len(picture) == _RANK and min(picture) > 0 and len(_readers(graph, node.input[0])) > 1:
            window = helper.make_node(
                "AveragePool", list(node.input), list(node.output), node.name, kernel_shape=picture[2:]
            )
            _replace(graph, node, [window])


def _full_rank(model: onnx.ModelProto) -> None:
    """Constants beside pictures get all four dimensions, so that the converter can turn them as well."""
    graph = model.graph
    constants, ranks = _constants(graph), _ranks(model)
    for node in list(graph.node):
        if node.op_type not in _ELEMENTWISE or _RANK not in [ranks.get(x) for x in node.input]:
            continue
        for place, name in enumerate(node.input):
            dims = list(constants[name].dims) if name in constants else []
            if 1 < len(dims) < _RANK:
                values = numpy_helper.to_array(constants[name]).reshape([1] * (_RANK - len(dims)) + dims)
                node.input[place] = f"{name}:{_RANK}"
                if node.input[place] not in constants:
                    constants[node.input[place]] = numpy_helper.from_array(values, node.input[place])
                    graph.initializer.append(constants[node.input[place]])


def _drop_identity_gathers(model: onnx.ModelProto) -> None:
    """Picking every element of a vector in its order is a reshape; torch's `as_strided` becomes that."""
    graph = model.graph
    constants, shapes = _constants(graph), _shapes(model)
    for node in _each(graph, "Gather"):
        if node.input[1] not in constants:
            continue
        indices = numpy_helper.to_array(constants[node.input[1]])
        if shapes.get(node.input[0]) != [indices.size]:
            continue
        if not np.array_equal(indices.reshape(-1), np.arange(indices.size)):
            continue
        shape = f"{node.output[0]}_shape"
        graph.initializer.append(numpy_helper.from_array(np.array(indices.shape, np.int64), shape))
        _replace(
            graph, node, [helper.make_node("Reshape", [node.input[0], shape], [node.output[0]], node.name)]
        )


def _join_reshapes(model: onnx.ModelProto) -> None:
    """Of several reshapes in a row the last one is enough."""
    graph = model.graph
    constants, shapes = _constants(graph), _shapes(model)
    outputs = {x.name for x in graph.output}
    for node in _each(graph, "Reshape"):
        target = shapes.get(node.output[0])
        if node.input[1] not in constants or not target or min(target) < 1:
            continue
        source = node.input[0]
        while (
            (before := next((x for x in graph.node if source in x.output), None)) is not None
            and before.op_type == "Reshape"
            and source not in outputs
            and len(_readers(graph, source)) == 1
        ):
            source = before.input[0]
            _replace(graph, before, [])
        if source == node.input[0]:
            continue
        shape = f"{node.output[0]}_joined"
        graph.initializer.append(numpy_helper.from_array(np.array(target, np.int64), shape))
        last = next(x for x in graph.node if x.output[0] == node.output[0])
        _replace(graph, last, [helper.make_node("Reshape", [source, shape], [last.output[0]], last.name)])


def _connect_products(model: onnx.ModelProto) -> None:
    """A matrix product with a constant is a fully connected layer without a bias."""
    graph = model.graph
    constants, ranks = _constants(graph), _ranks(model)
    for node in _each(graph, "MatMul"):
        weight = constants.get(node.input[1])
        if weight is not None and len(weight.dims) == ranks.get(node.input[0]) == 2:  # noqa: PLR2004 - matrices
            _replace(graph, node, [helper.make_node("Gemm", list(node.input), list(node.output), node.name)])


def _flatten_channels_last(model: onnx.ModelProto) -> None:
    """Let a dense layer behind flattened pictures read them channels last: its weights change places."""
    graph = model.graph
    constants, shapes = _constants(graph), _shapes(model)
    for node in _each(graph, "Gemm"):
        flat = next((x for x in graph.node if node.input[0] in x.output), None)
        weight = constants.get(node.input[1])
        if flat is None or weight is None or flat.op_type not in {"Flatten", "Reshape"}:
            continue
        picture, rows = shapes.get(flat.input[0], []), shapes.get(flat.output[0], [])
        shared = len(_readers(graph, flat.output[0])) > 1 or len(_readers(graph, weight.name)) > 1
        if shared or not _is_flattened(picture, rows) or _attribute(node, "transA", 0):
            continue
        turned, shape = f"{flat.output[0]}_turned", f"{flat.output[0]}_shape"
        axis = 1 if _attribute(node, "transB", 0) else 0
        weight.CopyFrom(_permuted(weight, picture, axis))
        graph.initializer.append(numpy_helper.from_array(np.array(rows, np.int64), shape))
        parts = [
            helper.make_node("Transpose", [flat.input[0]], [turned], f"{flat.name}_turn", perm=[0, 2, 3, 1]),
            helper.make_node("Reshape", [turned, shape], [flat.output[0]], flat.name),
        ]
        _replace(graph, flat, parts)


def _is_flattened(picture: list[int], rows: list[int]) -> bool:
    """Return whether one shape is that of `[1, channels, height, width]` and the other its only row."""
    if len(picture) != _RANK or min(picture) < 1 or picture[0] != 1:
        return False
    return rows == [1, math.prod(picture)] and picture[1] > 1 and picture[2] * picture[3] > 1


def _permuted(weight: onnx.TensorProto, picture: list[int], axis: int) -> onnx.TensorProto:
    """Return a dense layer's weights with its inputs, along an axis, in the order of channels last."""
    values = numpy_helper.to_array(weight)
    order = np.arange(math.prod(picture)).reshape(picture[1:]).transpose(1, 2, 0).reshape(-1)
    return numpy_helper.from_array(np.ascontiguousarray(values.take(order, axis=axis)), weight.name)


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        x.name: [d.dim_value if d.HasField("dim_value") else -1 for d in x.type.tensor_type.shape.dim]
        for x in (*inferred.value_info, *inferred.input, *inferred.output)
        if x.type.tensor_type.HasField("shape")
    }


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    return {name: len(shape) for name, shape in _shapes(model).items()}


_REWRITINGS: Final[tuple[Callable[[onnx.ModelProto], None], ...]] = (
    _pool_means,
    _pool_beside,
    _drop_identity_gathers,
    _join_reshapes,
    _connect_products,
    activations.rewrite,
    _full_rank,
    _flatten_channels_last,
)
