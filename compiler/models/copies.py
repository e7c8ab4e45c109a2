"""Copies of ONNX models: as they are, with more to see, or of fixed shapes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that may be changed."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    return found


def showing(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """Return a copy that gives these tensors of the outermost graph, too."""
    found = copy(model)
    there = {x.name for x in found.graph.output}
    found.graph.output.extend(onnx.ValueInfoProto(name=x) for x in tensors if x not in there)
    return found


def fixed(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Return a copy whose inputs have these shapes; what depends on them is left to inference."""
    found = copy(model)
    for value in found.graph.input:
        if value.name in shapes:
            dims = value.type.tensor_type.shape.dim
            del dims[:]
            for size in shapes[value.name]:
                dims.add().dim_value = size
    for value in found.graph.output:
        if any(not x.HasField("dim_value") for x in value.type.tensor_type.shape.dim):
            value.type.tensor_type.ClearField("shape")
    del found.graph.value_info[:]
    return found
