"""Proving that a quantized model keeps AMD's rules. Pure.

Source: AMD Quark documentation, "INT8/INT16 quantization for Ryzen AI": symmetric int8 or int16 activations,
symmetric int8 weights, int32 biases, one scale per tensor; for XINT8 each a power of two.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from compiler.models.graphs import DEQUANTIZE, QUANTIZE, Graph

_TYPES = {"xint8": {"int8", "int32"}, "int8": {"int8", "int32"}, "int16": {"int16", "int8", "int32"}}


def check(model: onnx.ModelProto, precision: str) -> list[str]:
    """Return what breaks a rule, with the node's name; none for a model as AMD documents it."""
    return list(_broken(Graph(model), precision))


def _broken(graph: Graph, precision: str) -> Iterator[str]:
    for node in graph.nodes:
        if node.op_type not in {QUANTIZE, DEQUANTIZE}:
            continue
        name = node.name or node.output[0]
        scale = graph.array(node.input[1])
        zero = graph.array(node.input[2]) if len(node.input) > 2 else None  # noqa: PLR2004 - the third input
        if scale is None or zero is None:
            yield f"{name}: expected a constant scale and zero point; got none"
            continue
        if scale.size != 1:
            yield f"{name}: expected one scale per tensor; got {scale.size}"
        if zero.dtype.name not in _TYPES[precision] or np.any(zero):
            yield f"{name}: expected signed integers with zero point 0; got {zero.dtype} at {zero}"
        if precision == "xint8" and not _power_of_two(scale):
            yield f"{name}: expected a scale that is a power of two; got {scale}"


def _power_of_two(scale: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bool:
    mantissa, _ = np.frexp(scale.astype(np.float64))
    return bool((mantissa == 0.5).all())  # noqa: PLR2004 - what frexp gives for one
