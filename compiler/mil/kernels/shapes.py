"""Shapes, joining and splitting."""

from __future__ import annotations

import numpy as np

from compiler.mil.kernels import Inputs, bounded, computes
from compiler.tensors import Array


@computes("reshape")
def _reshape(i: Inputs) -> Array:
    x = i.array()
    return x.reshape([x.shape[n] if size == 0 else size for n, size in enumerate(i.integers("shape"))])


@computes("transpose")
def _transpose(i: Inputs) -> Array:
    return i.array().transpose(i.integers("perm"))


@computes("squeeze")
def _squeeze(i: Inputs) -> Array:
    axes = tuple(i.integers("axes"))
    return i.array().squeeze(axes) if axes else i.array().squeeze()


@computes("expand_dims")
def _expand_dims(i: Inputs) -> Array:
    return np.expand_dims(i.array(), tuple(i.integers("axes")))


@computes("tile")
def _tile(i: Inputs) -> Array:
    bounded(i.array().size, *i.integers("reps"))
    return np.tile(i.array(), i.integers("reps"))


@computes("concat")
def _concat(i: Inputs) -> Array:
    return np.concatenate(i.several(), axis=i.integer("axis"))


@computes("stack")
def _stack(i: Inputs) -> Array:
    return np.stack(i.several(), axis=i.integer("axis"))


@computes("split")
def _split(i: Inputs) -> tuple[Array, ...]:
    x, axis = i.array(), i.integer("axis")
    if i.has("split_sizes"):
        return tuple(np.split(x, np.cumsum(i.integers("split_sizes"))[:-1], axis=axis))
    return tuple(np.split(x, i.integer("num_splits", 1), axis=axis))


@computes("reverse")
def _reverse(i: Inputs) -> Array:
    return np.flip(i.array(), tuple(i.integers("axes")) or None)


@computes("slice_by_index")
def _slice_by_index(i: Inputs) -> Array:
    x = i.array()
    begin, end, rank = i.integers("begin"), i.integers("end"), x.ndim
    stride = i.integers("stride", [1] * rank)
    masks = {name: i.integers(name, [0] * rank) for name in ("begin_mask", "end_mask", "squeeze_mask")}
    cut = tuple(
        begin[a]
        if masks["squeeze_mask"][a]
        else slice(
            None if masks["begin_mask"][a] else begin[a],
            None if masks["end_mask"][a] else end[a],
            stride[a],
        )
        for a in range(rank)
    )
    return np.asarray(x[cut])


@computes("slice_by_size")
def _slice_by_size(i: Inputs) -> Array:
    x = i.array()
    pairs = zip(i.integers("begin"), i.integers("size"), x.shape, strict=True)
    return x[tuple(slice(b, whole if n < 0 else b + n) for b, n, whole in pairs)]


@computes("pad")
def _pad(i: Inputs) -> Array:
    """The padding names the last dimensions."""
    x, given = i.array(), i.integers("pad")
    pairs = [(0, 0)] * (x.ndim - len(given) // 2) + list(zip(given[::2], given[1::2], strict=True))
    bounded(*(size + sum(pair) for size, pair in zip(x.shape, pairs, strict=True)))
    mode = i.text("mode", "constant")
    if mode == "constant":
        return np.pad(x, pairs, constant_values=i.array("constant_val") if i.has("constant_val") else 0)
    return np.pad(x, pairs, mode="reflect" if mode == "reflect" else "edge")


@computes("fill")
def _fill(i: Inputs) -> Array:
    value = i.array("value") if i.has("value") else np.zeros((), np.float32)
    bounded(*i.integers("shape"))
    return np.full(i.integers("shape"), value)


@computes("shape")
def _shape(i: Inputs) -> Array:
    return np.array(i.array().shape, np.int32)
