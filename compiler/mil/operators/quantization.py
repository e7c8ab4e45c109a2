"""Quantized models: QDQ nodes become Core ML's own."""

from __future__ import annotations

from typing import Final

import numpy as np

from compiler.mil import weights
from compiler.mil.registry import Node, converts
from compiler.mil.values import Value, emit, is_float
from compiler.tensors import Array

#: Integers that Core ML quantizes activations to (coremltools, operation `quantize` of iOS 17).
_TYPES: Final = ("int8", "uint8")


def _scale(node: Node) -> Array:
    scale = node.constant(1).astype(np.float32)
    return scale.reshape(()) if scale.size == 1 else scale


def _zero_point(node: Node, scale: Array) -> Array:
    return node.constant(2).reshape(scale.shape) if node.has(2) else np.zeros(scale.shape, np.uint8)


def _axis(node: Node, scale: Array) -> int | None:
    if scale.ndim > 1:
        raise node.refusal("one scale, or one per channel", f"{scale.ndim} dimensions of scales")
    return node.axis(node.integer("axis", 1)) if scale.ndim else None


@converts("QuantizeLinear")
def _quantize(node: Node) -> Value:
    scale = _scale(node)
    zero_point = _zero_point(node, scale)
    if zero_point.dtype.name not in _TYPES:
        raise node.refusal(f"integers of {', '.join(_TYPES)}", zero_point.dtype.name)
    return emit(
        "quantize",
        input=node.value(),
        scale=scale,
        zero_point=zero_point,
        axis=_axis(node, scale),
        output_dtype=zero_point.dtype.name,
    )


@converts("DequantizeLinear")
def _dequantize(node: Node) -> Value:
    """A constant of 8 bits stays one in the artifact; one of 32 bits, a bias, becomes floats."""
    steps, scale = node.value(), _scale(node)
    axis = _axis(node, scale)
    if isinstance(steps, np.ndarray):
        zero_point = (
            node.constant(2).reshape(scale.shape) if node.has(2) else np.zeros(scale.shape, steps.dtype)
        )
        if steps.dtype.name in _TYPES and steps.ndim:
            return weights.affine(steps, scale, zero_point, axis or 0)
        across = [-1 if scale.ndim and x == axis else 1 for x in range(steps.ndim)]
        centred = steps.astype(np.float32) - zero_point.astype(np.float32).reshape(across)
        return np.asarray(centred * scale.reshape(across), np.float32).reshape(steps.shape)
    if is_float(steps):
        raise node.refusal("integers", "floats")
    zero = node.constant(2).reshape(scale.shape) if node.has(2) else None
    return emit("dequantize", input=steps, scale=scale, zero_point=zero, axis=axis)
