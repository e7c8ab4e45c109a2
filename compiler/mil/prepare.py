"""Bringing an ONNX graph to fixed shapes, with everything computed beforehand that can be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from compiler import onnx_session


def fold(model: onnx.ModelProto, scratch: Path) -> onnx.ModelProto:
    """Return the model with its constant parts computed, by ONNX Runtime's basic optimizations.

    They keep to ONNX's own operators, and give the same bytes each time.

    Raises:
        CompileError: ONNX Runtime cannot load it.
    """
    source = scratch / "shaped.onnx"
    onnx.save(model, source)
    return onnx_session.optimized(source, scratch / "folded.onnx")


def turn_weights(model: onnx.ModelProto) -> None:
    """Store the matrix of each Gemm with its outputs along the first axis, as Core ML's `linear` has it.

    A quantizer then finds them there, and what it wrote needs no transposing. A MatMul of two matrices is a
    Gemm too.
    """
    weights = {x.name: x for x in model.graph.initializer}
    readers = Counter(x for node in model.graph.node for x in node.input)
    matrices = _matrices(model)
    for node in model.graph.node:
        matmul = node.op_type == "MatMul" and {node.input[0], node.input[1]} <= matrices
        turned = any(x.name == "transB" and x.i for x in node.attribute)
        if not (matmul or node.op_type == "Gemm") or turned:
            continue
        if node.input[1] not in weights or readers[node.input[1]] > 1:
            continue
        tensor = weights[node.input[1]]
        array = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        kept = [x for x in node.attribute if x.name != "transB"]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("transB", 1)])
        node.op_type = "Gemm"


def _matrices(model: onnx.ModelProto) -> set[str]:
    """Return the names of the tensors with two dimensions."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    found = {x.name for x in values if len(x.type.tensor_type.shape.dim) == 2}  # noqa: PLR2004 - a matrix
    return found | {x.name for x in graph.initializer if len(x.dims) == 2}  # noqa: PLR2004 - a matrix
