"""Taking parts of tensors, and putting parts into them."""

from __future__ import annotations

import numpy as np

from compiler.mil.registry import Node, converts
from compiler.mil.values import Value, emit, kind_of, scalar
from compiler.tensors import Array


def _front(node: Node, index: int, size: int) -> Value:
    """Return indices counted from the front: Core ML's own reading of negative ones is not documented."""
    indices = node.value(index)
    if isinstance(indices, np.ndarray):
        whole = indices.astype(np.int64)
        return np.where(whole < 0, whole + size, whole)
    negative = emit("less", x=indices, y=scalar(0, indices))
    return emit("select", cond=negative, a=emit("add", x=indices, y=scalar(size, indices)), b=indices)


@converts("Gather")
def _gather(node: Node) -> Value:
    axis = node.axis(node.integer("axis", 0))
    x, indices = node.value(), _front(node, 1, node.shape()[axis])
    if isinstance(x, np.ndarray) and isinstance(indices, np.ndarray):
        return np.asarray(x.take(indices.astype(np.int64), axis))
    return emit("gather", x=node.weight(0, axis=0), indices=indices, axis=axis)


@converts("GatherElements")
def _gather_elements(node: Node) -> Value:
    axis = node.axis(node.integer("axis", 0))
    indices = _front(node, 1, node.shape()[axis])
    return emit("gather_along_axis", x=node.value(), indices=indices, axis=axis)


@converts("GatherND")
def _gather_nd(node: Node) -> Value:
    indices = node.constant(1).astype(np.int64)
    batch = node.integer("batch_dims", 0)
    sizes = np.array(node.shape()[batch : batch + indices.shape[-1]])
    front = np.where(indices < 0, indices + sizes, indices)
    return emit("gather_nd", x=node.value(), indices=front, batch_dims=batch)


@converts("ScatterElements")
def _scatter_elements(node: Node) -> Value:
    axis = node.axis(node.integer("axis", 0))
    rest = [x for i, x in enumerate(zip(node.shape(0), node.shape(1), strict=True)) if i != axis]
    if any(x != y for x, y in rest):
        raise node.refusal("indices as large as the data but along the axis", str(node.shape(1)))
    indices = _front(node, 1, node.shape()[axis])
    return emit(
        "scatter_along_axis",
        data=node.value(0),
        indices=indices,
        updates=node.value(2),
        axis=axis,
        mode=_mode(node),
    )


@converts("ScatterND")
def _scatter_nd(node: Node) -> Value:
    indices = node.constant(1).astype(np.int64)
    sizes = np.array(node.shape()[: indices.shape[-1]])
    front = np.where(indices < 0, indices + sizes, indices)
    return emit("scatter_nd", data=node.value(0), indices=front, updates=node.value(2), mode=_mode(node))


def _mode(node: Node) -> str:
    return {"none": "update"}.get(node.text("reduction", "none"), node.text("reduction", "none"))


@converts("OneHot")
def _one_hot(node: Node) -> Value:
    depth, (off, on) = node.numbers(1)[0], node.constant(2)
    axis = node.axis(node.integer("axis", -1), node.rank() + 1)
    indices = _front(node, 0, depth)
    return emit(
        "one_hot", indices=indices, one_hot_vector_size=np.int32(depth), axis=axis, on_value=on, off_value=off
    )


@converts("Slice")
def _slice(node: Node) -> Value:
    """Ends are written out with ONNX's clamping; a step backwards to the front masks its end."""
    x, shape = node.value(), node.shape()
    starts, ends, axes, steps = _bounds(node)
    cut = [slice(None)] * len(shape)
    begin, end, stride, open_end = [0] * len(shape), list(shape), [1] * len(shape), [False] * len(shape)
    for start, stop, axis, step in zip(starts, ends, axes, steps, strict=True):
        cut[axis] = slice(start, stop, step)
        low, high, _ = cut[axis].indices(shape[axis])
        begin[axis], end[axis], stride[axis] = low, max(high, 0), step
        open_end[axis] = high < 0
    if isinstance(x, np.ndarray):
        return np.asarray(x[tuple(cut)])
    sizes = [len(range(*c.indices(size))) for c, size in zip(cut, shape, strict=True)]
    if 0 in sizes:
        return np.zeros(sizes, kind_of(x))
    if sizes == list(shape) and all(y == 1 for y in stride):
        return x
    return emit("slice_by_index", x=x, begin=begin, end=end, stride=stride, end_mask=open_end)


def _bounds(node: Node) -> tuple[list[int], list[int], list[int], list[int]]:
    if not node.has(1):  # before opset 10 they were attributes
        starts, ends = node.integers("starts"), node.integers("ends")
        axes = node.integers("axes", range(len(starts)))
    else:
        starts, ends = node.numbers(1), node.numbers(2)
        axes = node.numbers(3) if node.has(3) else list(range(len(starts)))
    steps = node.numbers(4) if node.has(4) else [1] * len(starts)
    return starts, ends, [node.axis(x) for x in axes], steps


@converts("Pad")
def _pad(node: Node) -> Value:
    """Negative padding is a slice; only constants are padded by Core ML's own operation."""
    rank = node.rank()
    given = node.numbers(1) if node.has(1) else node.integers("pads")
    axes = [node.axis(x) for x in node.numbers(3)] if node.has(3) else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = given[i], given[i + len(axes)]
    x = _cropped(node, before, after)
    before, after = [max(y, 0) for y in before], [max(y, 0) for y in after]
    if not any(before + after):
        return x
    mode = node.text("mode", "constant")
    fill = float(node.constant(2).reshape(())) if node.has(2) else node.number("value", 0.0)
    if mode == "constant":
        pairs = [y for pair in zip(before, after, strict=True) for y in pair]
        return emit("pad", x=x, pad=pairs, mode="constant", constant_val=scalar(fill, x))
    return _mirrored(node, x, before, after, mode)


def _cropped(node: Node, before: list[int], after: list[int]) -> Value:
    if min(before + after) >= 0:
        return node.value()
    begin = [max(-x, 0) for x in before]
    end = [size - max(-x, 0) for size, x in zip(node.shape(), after, strict=True)]
    return emit("slice_by_index", x=node.value(), begin=begin, end=end)


def _mirrored(node: Node, x: Value, before: list[int], after: list[int], mode: str) -> Value:
    """Core ML reflects and repeats at the last two dimensions only; elsewhere indices are gathered."""
    modes = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    if mode not in modes:
        raise node.refusal("mode constant, reflect, edge or wrap", mode)
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        if low or high:
            indices: Array = np.pad(np.arange(x.shape[axis]), (low, high), mode=modes[mode])  # type: ignore[call-overload]  # numpy wants literals
            x = emit("gather", x=x, indices=indices, axis=axis)
    return x
