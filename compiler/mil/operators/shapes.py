"""Shapes: what changes them, and what makes tensors from them."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from compiler.mil.registry import Node, converts
from compiler.mil.values import Value, emit, emit_many, is_float, kind_of, portable, shape_of
from compiler.tensors import Array

_CASTS: Final = {
    "float16": "fp16",
    "float32": "fp32",
    "float64": "fp32",
    "bool": "bool",
    "int8": "int8",
    "uint8": "uint8",
    "int16": "int16",
    "uint16": "uint16",
    "int32": "int32",
    "int64": "int32",
}


@converts("Identity", "Dropout")
def _identity(node: Node) -> Value:
    """Dropout drops nothing at inference; its mask is refused where it is used, as it has no value."""
    return node.value()


@converts("Constant")
def _constant(node: Node) -> Value:
    tensor = node.tensor("value")
    if tensor is not None:
        return tensor
    if node.given("value_float"):
        return np.array(node.number("value_float", 0.0), np.float32)
    if node.given("value_int"):
        return np.array(node.integer("value_int", 0), np.int64)
    if node.given("value_ints"):
        return np.array(node.integers("value_ints"), np.int64)
    raise node.refusal("a constant of numbers", "another")


@converts("ConstantOfShape")
def _constant_of_shape(node: Node) -> Value:
    value = node.tensor("value")
    fill = np.zeros(1, np.float32) if value is None else value
    return np.full(node.numbers(0), fill.reshape(-1)[0], fill.dtype)


@converts("Range")
def _range(node: Node) -> Value:
    start, limit, step = (node.constant(x).reshape(()) for x in range(3))
    return np.arange(start, limit, step, dtype=start.dtype)


@converts("Shape")
def _shape(node: Node) -> Value:
    shape = node.shape()
    start, end = node.integer("start", 0), node.integer("end", len(shape))
    return np.array(shape[start:end], np.int64)


@converts("Size")
def _size(node: Node) -> Value:
    return np.array(math.prod(node.shape()), np.int64)


@converts("Cast")
def _cast(node: Node) -> Value:
    from onnx.helper import tensor_dtype_to_np_dtype

    return _as(node, tensor_dtype_to_np_dtype(node.integer("to", 1)))


@converts("CastLike")
def _cast_like(node: Node) -> Value:
    return _as(node, kind_of(node.value(1)))


def _as(node: Node, kind: np.dtype[np.generic]) -> Value:
    x = node.value()
    if isinstance(x, np.ndarray):
        return x.astype(kind)
    if kind.name not in _CASTS:
        raise node.refusal(f"a type of {', '.join(_CASTS)}", kind.name)
    if kind == np.bool_ and is_float(x):  # anything but 0 is true, also what an integer would round to 0
        return emit("not_equal", x=x, y=np.zeros((), kind_of(x)))
    return emit("cast", x=x, dtype=_CASTS[kind.name])


@converts("Reshape")
def _reshape(node: Node) -> Value:
    old, new = node.shape(), node.numbers(1)
    if not node.integer("allowzero", 0):
        new = [old[i] if x == 0 else x for i, x in enumerate(new)]
    known = math.prod(x for x in new if x >= 0)
    return _reshaped(node.value(), [math.prod(old) // max(known, 1) if x < 0 else x for x in new])


def _reshaped(value: Value, shape: list[int]) -> Value:
    if isinstance(value, np.ndarray):
        return value.reshape(shape)
    if not shape:
        return emit("squeeze", x=value)
    return emit("reshape", x=value, shape=shape)


@converts("Flatten")
def _flatten(node: Node) -> Value:
    shape, axis = node.shape(), node.integer("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return _reshaped(node.value(), [math.prod(shape[:axis]), math.prod(shape[axis:])])


@converts("Transpose")
def _transpose(node: Node) -> Value:
    perm = node.integers("perm", range(node.rank())[::-1])
    x = node.value()
    return x.transpose(perm) if isinstance(x, np.ndarray) else emit("transpose", x=x, perm=perm)


@converts("Squeeze")
def _squeeze(node: Node) -> Value:
    shape = node.shape()
    given = node.numbers(1) if node.has(1) else node.integers("axes")
    axes = [node.axis(x) for x in given] or [i for i, x in enumerate(shape) if x == 1]
    return _reshaped(node.value(), [x for i, x in enumerate(shape) if i not in axes])


@converts("Unsqueeze")
def _unsqueeze(node: Node) -> Value:
    given = node.numbers(1) if node.has(1) else node.integers("axes")
    rank = node.rank() + len(given)
    axes = {node.axis(x, rank) for x in given}
    rest = iter(node.shape())
    return _reshaped(node.value(), [1 if i in axes else next(rest) for i in range(rank)])


@converts("Expand")
def _expand(node: Node) -> Value:
    x = node.value()
    shape = np.broadcast_shapes(node.shape(), tuple(node.numbers(1)))
    if isinstance(x, np.ndarray):
        return np.ascontiguousarray(np.broadcast_to(x, shape))
    wide = [1] * (len(shape) - node.rank()) + list(node.shape())
    return _tiled(_reshaped(x, wide), [new // old for new, old in zip(shape, wide, strict=True)])


@converts("Tile")
def _tile(node: Node) -> Value:
    return _tiled(node.value(), node.numbers(1))


def _tiled(value: Value, repeats: list[int]) -> Value:
    if isinstance(value, np.ndarray):
        return np.tile(value, repeats)
    return value if all(x == 1 for x in repeats) else emit("tile", x=value, reps=repeats)


@converts("Concat")
def _concat(node: Node) -> Value:
    values, axis = node.values(), node.axis(node.integer("axis", 0))
    arrays: list[Array] = [x for x in values if isinstance(x, np.ndarray)]
    if len(arrays) == len(values):
        return np.concatenate(arrays, axis)
    full = [x for x in values if math.prod(shape_of(x))]
    if len(full) == 1:
        return full[0]
    return emit("concat", values=[portable(x) if isinstance(x, np.ndarray) else x for x in full], axis=axis)


@converts("Split")
def _split(node: Node) -> list[Value]:
    axis = node.axis(node.integer("axis", 0))
    size, count = node.shape()[axis], len(node.outputs)
    step = -(-size // count)
    even = [min(step, size - i * step) for i in range(count)]
    sizes = node.numbers(1) if node.has(1) else node.integers("split", even)
    return list(emit_many("split", x=node.value(), split_sizes=sizes, axis=axis))
