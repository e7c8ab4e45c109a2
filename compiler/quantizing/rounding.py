"""Running half-precision models on a CPU, rounded as they are written or as their device rounds them.

ONNX Runtime computes float16 operators in float32 on a CPU and leaves out the rounding between them, so that
an overflow would go unseen. So the model is written out in float32, with a rounding behind each operator
that has it: each then sums in float32 and rounds its result, as the accelerators' kernels do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from compiler.onnx_session import Session


def widened(model: onnx.ModelProto) -> bool:
    """Write a model's float16 out in float32, in place; return whether there was any."""
    half = TensorProto.FLOAT16
    halves = _typed(model, half)
    constants = [x for x in model.graph.initializer if x.data_type == half]
    for tensor in constants:
        tensor.CopyFrom(_wide(tensor))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == half:
                attribute.t.CopyFrom(_wide(attribute.t))
            if attribute.name == "to" and attribute.i == half:
                attribute.i = TensorProto.FLOAT
    _round(model, halves, half)
    return bool(halves or constants)


def in_bfloat16(model: onnx.ModelProto) -> None:
    """Round every float32 tensor of a model's outermost graph to bfloat16, weights too, in place."""
    floats = _typed(model, TensorProto.FLOAT)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(_bfloat16(numpy_helper.to_array(tensor)), tensor.name))
    _round(model, floats, TensorProto.BFLOAT16)


def _typed(model: onnx.ModelProto, kind: int) -> set[str]:
    """Return the tensors of a type that nodes make for other nodes."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    outputs = {x.name for x in inferred.output}
    seen = {x.name for x in inferred.value_info if x.type.tensor_type.elem_type == kind}
    return seen - outputs


def _wide(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _bfloat16(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Round finite numbers to the nearest bfloat16, ties to even: the upper half of a float32's bits."""
    bits = np.array(values, np.float32, ndmin=1).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).reshape(values.shape)


def _round(model: onnx.ModelProto, names: set[str], kind: int) -> None:
    nodes = [x for node in model.graph.node for x in _rounded(node, names, kind)]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)


def _rounded(node: onnx.NodeProto, names: set[str], kind: int) -> Iterator[onnx.NodeProto]:
    """Yield a node, and what rounds its outputs."""
    yield node
    for place, name in enumerate(node.output):
        if name in names:
            node.output[place] = f"{name}_wide"
            yield helper.make_node("Cast", [f"{name}_wide"], [f"{name}_round"], to=kind)
            yield helper.make_node("Cast", [f"{name}_round"], [name], to=TensorProto.FLOAT)


def session(path: Path, *, bfloat16: bool = False) -> Session:
    """Load a model so that its numbers are those of the device.

    Args:
        path: a model that may hold float16.
        bfloat16: the device computes its float32 in bfloat16.

    Raises:
        CompileError: ONNX Runtime cannot load it.
    """
    model = onnx.load(path)
    half = widened(model)
    if bfloat16:
        in_bfloat16(model)
    if not (half or bfloat16):
        return Session(path)
    out = path.with_name(f".{path.name}")
    try:
        onnx.save(model, out)
        return Session(out, plain=True)  # optimizing, it would leave out the rounding again
    finally:
        out.unlink(missing_ok=True)


def reference(path: Path, *, bfloat16: bool = False) -> Session:
    """Load a model so that it computes with other kernels than `session`, and rounds elsewhere.

    Raises:
        CompileError: ONNX Runtime cannot load it.
    """
    half = any(x.data_type == TensorProto.FLOAT16 for x in onnx.load(path).graph.initializer)
    return Session(path, plain=not (half or bfloat16))
