"""Weights in int8, arithmetic in float: a smaller file that a runtime unpacks when it loads it."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

#: Operator to the axis of its weight's output channels.
AXES: Final = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
#: Smaller weights weigh less than what describes their scales.
SMALLEST: Final = 512


def quantize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the weights of the heavy operators by int8 and a scale per output channel, in place."""
    weights = {x.name: x for x in model.graph.initializer}
    used: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in AXES and len(node.input) > 1 and node.input[1] in weights:
            used.setdefault(node.input[1], channel_axis(node, len(weights[node.input[1]].dims)))
    before: list[onnx.NodeProto] = []
    for name, axis in used.items():
        if weights[name].data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(weights[name]).astype(np.float32)
        if values.size < SMALLEST:
            continue
        integers, scales = per_channel(values, axis)
        model.graph.initializer.remove(weights[name])
        parts = (numpy_helper.from_array(integers, f"{name}_q"), numpy_helper.from_array(scales, f"{name}_s"))
        model.graph.initializer.extend(parts)
        before.append(helper.make_node("DequantizeLinear", [x.name for x in parts], [name], axis=axis))
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*before, *rest])
    return model


def channel_axis(node: onnx.NodeProto, dimensions: int) -> int:
    """Return the axis of a heavy operator's weight that counts output channels."""
    if node.op_type == "Gemm":
        transposed = any(x.name == "transB" and x.i for x in node.attribute)
        return 0 if transposed else 1
    return dimensions - 1 if node.op_type == "MatMul" else AXES[node.op_type]


def per_channel(
    values: npt.NDArray[np.float32], axis: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return symmetric int8 values and their scales along an axis: values ≈ integers * scale."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    largest = np.abs(values).max(axis=others, keepdims=True)
    scales = np.where(largest > 0, largest / 127.0, 1.0).astype(np.float32)
    integers = np.clip(np.rint(values / scales), -127, 127).astype(np.int8)
    return integers, scales.reshape(-1)
