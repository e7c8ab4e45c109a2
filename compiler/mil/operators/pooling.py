"""Pools."""

from __future__ import annotations

import itertools

import numpy as np

from compiler.mil import windows
from compiler.mil.registry import Node, converts
from compiler.mil.values import Value, emit
from compiler.mil.windows import Windows
from compiler.tensors import Array


@converts("GlobalAveragePool")
def _global_average(node: Node) -> Value:
    return emit("reduce_mean", x=node.value(), axes=list(range(2, node.rank())), keep_dims=True)


@converts("GlobalMaxPool")
def _global_max(node: Node) -> Value:
    return emit("reduce_max", x=node.value(), axes=list(range(2, node.rank())), keep_dims=True)


@converts("MaxPool")
def _max(node: Node) -> Value:
    if len([x for x in node.outputs if x]) > 1:
        raise node.refusal("the maxima alone", "their indices too")
    where = _windows(node)
    return emit(
        "max_pool",
        x=node.value(),
        kernel_sizes=where.kernel,
        strides=where.strides,
        pad_type="custom",
        pad=where.pad,
    )


@converts("AveragePool")
def _average(node: Node) -> Value:
    """Where padding counts but the cells of a last, partial window do not, the counts are written out."""
    where = _windows(node)
    counted = bool(node.integer("count_include_pad", 0))
    partial = where.ends != _floor(node).ends
    found = emit(
        "avg_pool",
        x=node.value(),
        kernel_sizes=where.kernel,
        strides=where.strides,
        pad_type="custom",
        pad=where.pad,
        exclude_padding_from_average=not counted,
    )
    if not counted or not partial:
        return found
    return emit("mul", x=found, y=_shares(node, where))


def _floor(node: Node) -> Windows:
    where = windows.of(node, node.integers("kernel_shape"))
    if any(x != 1 for x in where.dilations):
        raise node.refusal("dilations of 1", str(where.dilations))
    return where


def _windows(node: Node) -> Windows:
    """Return the windows; the padding at the end grows until the last, partial window fits (`ceil_mode`)."""
    where = _floor(node)
    if not node.integer("ceil_mode", 0):
        return where
    ends = []
    for size, kernel, stride, begin, end in zip(
        node.shape()[2:], where.kernel, where.strides, where.begins, where.ends, strict=True
    ):
        count = -(-(size + begin + end - kernel) // stride) + 1
        if (count - 1) * stride >= size + begin:  # a window must start inside
            count -= 1
        ends.append(max((count - 1) * stride + kernel - size - begin, end))
    return where._replace(ends=ends)


def _shares(node: Node, where: Windows) -> Array:
    """Return, for each window, its cells over those of them that count."""
    sizes = node.shape()[2:]
    floor = _floor(node)
    counts = []
    for axis, size in enumerate(sizes):
        inside = where.begins[axis] + size + floor.ends[axis]
        total = where.begins[axis] + size + where.ends[axis]
        starts = range(0, total - where.kernel[axis] + 1, where.strides[axis])
        counts.append([where.kernel[axis] / (min(x + where.kernel[axis], inside) - x) for x in starts])
    products = [np.prod(x) for x in itertools.product(*counts)]
    return np.array(products, np.float32).reshape(1, 1, *map(len, counts))
