"""Resizing, and moving values between channels and space."""

from __future__ import annotations

import numpy as np

from compiler.mil.kernels import Floats, Inputs, bounded, computes
from compiler.tensors import Array


@computes("upsample_nearest_neighbor")
def _nearest(i: Inputs) -> Array:
    x = i.array()
    high, wide = i.integer("scale_factor_height", 1), i.integer("scale_factor_width", 1)
    bounded(x.size, high, wide)
    return x.repeat(high, axis=2).repeat(wide, axis=3)


@computes("upsample_bilinear")
def _bilinear(i: Inputs) -> Array:
    x, corners = i.floats(), i.flag("align_corners", default=True)
    for axis, name in ((2, "scale_factor_height"), (3, "scale_factor_width")):
        x = _stretched(x, axis, int(i.number(name, 1)), corners)
    return x


def _stretched(x: Floats, axis: int, factor: int, corners: bool) -> Floats:
    """Interpolate one axis; without aligned corners the cells' centres are aligned."""
    bounded(x.size, factor)
    size = x.shape[axis]
    new = np.arange(size * factor, dtype=np.float64)
    if corners:
        place = new * (size - 1) / max(size * factor - 1, 1)
    else:
        place = np.clip((new + 0.5) / factor - 0.5, 0, size - 1)
    low = np.floor(place).astype(np.int64)
    share = (place - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    first, second = np.take(x, low, axis), np.take(x, np.minimum(low + 1, size - 1), axis)
    return np.asarray(first * (1 - share) + second * share, np.float32)


@computes("depth_to_space")
def _depth_to_space(i: Inputs) -> Array:
    x, b = i.array(), i.integer("block_size")
    n, c, h, w = x.shape
    split = x.reshape(n, b, b, c // (b * b), h, w)
    return split.transpose(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


@computes("space_to_depth")
def _space_to_depth(i: Inputs) -> Array:
    x, b = i.array(), i.integer("block_size")
    n, c, h, w = x.shape
    split = x.reshape(n, c, h // b, b, w // b, b)
    return split.transpose(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


@computes("pixel_shuffle")
def _pixel_shuffle(i: Inputs) -> Array:
    x, b = i.array(), i.integer("upscale_factor")
    n, c, h, w = x.shape
    split = x.reshape(n, c // (b * b), b, b, h, w)
    return split.transpose(0, 1, 4, 2, 5, 3).reshape(n, c // (b * b), h * b, w * b)
