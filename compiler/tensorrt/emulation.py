"""Running float16 models on a CPU as they are written.

ONNX Runtime computes float16 operators in float32 on a CPU and leaves out the rounding between them, so that
an overflow would go unseen. So the model is written out in float32, with a rounding to float16 behind each
operator that has it: each then sums in float32 and rounds its result, as TensorRT's kernels do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compiler.onnx_session import Session


def widened(model: onnx.ModelProto) -> bool:
    """Write a model's float16 out in float32, in place; return whether there was any."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    half = TensorProto.FLOAT16
    halves = {x.name for x in inferred.value_info if x.type.tensor_type.elem_type == half}
    constants = [x for x in model.graph.initializer if x.data_type == half]
    for tensor in constants:
        tensor.CopyFrom(_wide(tensor))
    nodes = [x for node in model.graph.node for x in _rounded(node, halves)]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    return bool(halves or constants)


def _wide(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _rounded(node: onnx.NodeProto, halves: set[str]) -> Iterator[onnx.NodeProto]:
    """Yield a node, and what rounds its outputs."""
    for attribute in node.attribute:
        if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
            attribute.t.CopyFrom(_wide(attribute.t))
        if attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
    yield node
    for place, name in enumerate(node.output):
        if name in halves:
            node.output[place] = f"{name}_wide"
            yield helper.make_node("Cast", [f"{name}_wide"], [f"{name}_round"], to=TensorProto.FLOAT16)
            yield helper.make_node("Cast", [f"{name}_round"], [name], to=TensorProto.FLOAT)


def session(path: Path, *, plain: bool = False) -> Session:
    """Load a model that may hold float16, so that its numbers are those that are written.

    Raises:
        CompileError: ONNX Runtime cannot load it.
    """
    model = onnx.load(path)
    if not widened(model):
        return Session(path, plain=plain)
    out = path.with_name(f".{path.name}")
    try:
        onnx.save(model, out)
        return Session(out, plain=True)  # optimizing, it would leave out the rounding again
    finally:
        out.unlink(missing_ok=True)
