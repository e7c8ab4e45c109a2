"""Taking by index, and putting by index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from compiler.mil.kernels import Inputs, bounded, computes
from compiler.tensors import Array

_Indices = npt.NDArray[np.int64]
_SCATTERS: Final[dict[str, Callable[..., Any]]] = {
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "div": np.divide.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}


@computes("gather")
def _gather(i: Inputs) -> Array:
    x, indices, axis, batch = i.array(), _whole(i), i.integer("axis"), i.integer("batch_dims")
    if not batch:
        return np.asarray(np.take(x, indices, axis=axis))
    raise ValueError("gather: expected no batch dimensions")


def _whole(i: Inputs) -> _Indices:
    return i.array("indices").astype(np.int64)


@computes("gather_along_axis")
def _gather_along_axis(i: Inputs) -> Array:
    return np.take_along_axis(i.array(), _whole(i), axis=i.integer("axis"))


@computes("gather_nd")
def _gather_nd(i: Inputs) -> Array:
    x, indices, batch = i.array(), _whole(i), i.integer("batch_dims")
    if not batch:
        return np.asarray(x[tuple(np.moveaxis(indices, -1, 0))])
    outer = x.shape[:batch]
    parts = [x[place][tuple(np.moveaxis(indices[place], -1, 0))] for place in np.ndindex(*outer)]
    return np.asarray(np.stack(parts).reshape(*outer, *parts[0].shape))


@computes("scatter_nd")
def _scatter_nd(i: Inputs) -> Array:
    found = i.array("data").copy()
    return _put(found, tuple(np.moveaxis(_whole(i), -1, 0)), i)


@computes("scatter_along_axis")
def _scatter_along_axis(i: Inputs) -> Array:
    found, indices, axis = i.array("data").copy(), _whole(i), i.integer("axis") % i.array("data").ndim
    grid = list(np.indices(indices.shape, sparse=True))
    grid[axis] = indices
    return _put(found, tuple(grid), i)


def _put(found: Array, places: tuple[_Indices, ...], i: Inputs) -> Array:
    mode = i.text("mode", "add")
    if mode == "update":
        found[places] = i.array("updates")
    else:
        _SCATTERS[mode](found, places, i.array("updates"))
    return found


@computes("one_hot")
def _one_hot(i: Inputs) -> Array:
    indices, size, axis = _whole(i), i.integer("one_hot_vector_size"), i.integer("axis", -1)
    on = i.array("on_value") if i.has("on_value") else np.ones((), np.int32)
    off = i.array("off_value") if i.has("off_value") else np.zeros((), np.int32)
    bounded(indices.size, size)
    hit = indices[..., None] == np.arange(size)
    return np.moveaxis(np.where(hit, on, off), -1, axis)
