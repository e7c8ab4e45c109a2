"""Reductions, and the largest and smallest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from compiler.mil.kernels import Inputs, Kernel, computes
from compiler.tensors import Array

#: Takes an array, axes and whether to keep them.
_Reduce = Callable[[Any, tuple[int, ...], bool], Any]


def _log_sum_exp(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    top = x.max(axis=axes, keepdims=True)
    found = np.log(np.exp(x - top).sum(axis=axes, keepdims=True)) + top
    return found if keep else np.asarray(found.squeeze(axes))


_REDUCTIONS: Final[dict[str, _Reduce]] = {
    "reduce_l1_norm": lambda x, axes, keep: np.abs(x).sum(axis=axes, keepdims=keep),
    "reduce_l2_norm": lambda x, axes, keep: np.sqrt(np.square(x).sum(axis=axes, keepdims=keep)),
    "reduce_log_sum": lambda x, axes, keep: np.log(x.sum(axis=axes, keepdims=keep)),
    "reduce_log_sum_exp": _log_sum_exp,
    "reduce_max": lambda x, axes, keep: x.max(axis=axes, keepdims=keep),
    "reduce_mean": lambda x, axes, keep: x.mean(axis=axes, keepdims=keep),
    "reduce_min": lambda x, axes, keep: x.min(axis=axes, keepdims=keep),
    "reduce_prod": lambda x, axes, keep: x.prod(axis=axes, keepdims=keep),
    "reduce_sum": lambda x, axes, keep: x.sum(axis=axes, keepdims=keep),
    "reduce_sum_square": lambda x, axes, keep: np.square(x).sum(axis=axes, keepdims=keep),
}


def _reduction(reduce: _Reduce) -> Kernel:
    def kernel(i: Inputs) -> Array:
        x = i.array()
        axes = tuple(a % x.ndim for a in i.integers("axes", range(x.ndim)))
        return np.asarray(reduce(x, axes, i.flag("keep_dims")), x.dtype)

    return kernel


for _name, _reduce in _REDUCTIONS.items():
    computes(_name)(_reduction(_reduce))


def _extreme(function: Callable[..., Any]) -> Kernel:
    def kernel(i: Inputs) -> Array:
        axis = i.integer("axis", -1)
        return np.asarray(function(i.array(), axis=axis, keepdims=i.flag("keep_dims")), np.int32)

    return kernel


computes("reduce_argmax")(_extreme(np.argmax))
computes("reduce_argmin")(_extreme(np.argmin))


@computes("topk")
def _topk(i: Inputs) -> tuple[Array, ...]:
    x, axis, count = i.array(), i.integer("axis", -1), i.integer("k", 1)
    order = np.argsort(x if i.flag("ascending") else -x, axis=axis, kind="stable")
    indices = np.take(order, range(count), axis=axis)
    return np.take_along_axis(x, indices, axis=axis), indices.astype(np.int32)


@computes("cumsum")
def _cumsum(i: Inputs) -> Array:
    x, axis = i.array(), i.integer("axis")
    x = np.flip(x, axis) if i.flag("reverse") else x
    found = np.cumsum(x, axis=axis, dtype=x.dtype)
    found = np.subtract(found, x) if i.flag("exclusive") else found
    return np.flip(found, axis) if i.flag("reverse") else found
