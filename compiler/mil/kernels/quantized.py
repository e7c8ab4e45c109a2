"""Integers: quantizing, and weights that are stored as integers or as indices."""

from __future__ import annotations

from typing import Final

import numpy as np

from compiler.mil.kernels import Floats, Inputs, computes
from compiler.tensors import Array

_RANGES: Final = {"int8": (-128, 127), "uint8": (0, 255)}


def _along(values: Array, axis: int, rank: int) -> Floats:
    if values.ndim == 0:
        return values.astype(np.float32)
    return values.astype(np.float32).reshape([-1 if a == axis % rank else 1 for a in range(rank)])


@computes("quantize")
def _quantize(i: Inputs) -> Array:
    x, axis, kind = i.floats("input"), i.integer("axis"), i.text("output_dtype")
    low, high = _RANGES[kind]
    zero = _along(i.array("zero_point"), axis, x.ndim) if i.has("zero_point") else np.float32(0)
    steps = np.rint(x / _along(i.array("scale"), axis, x.ndim)) + zero
    return np.asarray(np.clip(steps, low, high), np.dtype(kind))


@computes("dequantize")
def _dequantize(i: Inputs) -> Array:
    x, axis = i.array("input"), i.integer("axis")
    zero = _along(i.array("zero_point"), axis, x.ndim) if i.has("zero_point") else np.float32(0)
    return np.asarray((x.astype(np.float32) - zero) * _along(i.array("scale"), axis, x.ndim), np.float32)


@computes("constexpr_affine_dequantize")
def _affine(i: Inputs) -> Array:
    data, axis = i.array("quantized_data"), i.integer("axis")
    zero = _along(i.array("zero_point"), axis, data.ndim)
    return np.asarray(
        (data.astype(np.float32) - zero) * _along(i.array("scale"), axis, data.ndim), np.float32
    )


@computes("constexpr_lut_to_dense")
def _palette(i: Inputs) -> Array:
    """Indices are packed from the least significant bit on."""
    palette, shape = i.array("lut"), i.integers("shape")
    bits, count = int(np.log2(palette.size)), int(np.prod(shape))
    stream = np.unpackbits(i.array("indices").astype(np.uint8), bitorder="little")[: bits * count]
    indices = stream.reshape(count, bits) @ (1 << np.arange(bits))
    return palette[indices].astype(np.float32).reshape(shape)
