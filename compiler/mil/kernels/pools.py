"""Pools."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from compiler.mil.kernels import Floats, Inputs, bounded, computes
from compiler.tensors import Array


def _windows(i: Inputs, x: Floats, fill: float) -> Floats:
    """Return `[N, C, …places, …cells]`; only explicit padding is written by this compiler."""
    kernel = i.integers("kernel_sizes")
    rank = len(kernel)
    strides, pads = i.integers("strides", [1] * rank), i.integers("pad", [0] * 2 * rank)
    if i.text("pad_type") != "custom" or i.flag("ceil_mode"):
        raise ValueError("pool: expected explicit padding and no ceil_mode")
    ends = [(pads[2 * a], pads[2 * a + 1]) for a in range(rank)]
    bounded(*x.shape[:2], *(size + sum(pair) for size, pair in zip(x.shape[2:], ends, strict=True)))
    padded = np.pad(x, [(0, 0), (0, 0), *ends], constant_values=fill)
    windows = sliding_window_view(padded, kernel, axis=tuple(range(2, x.ndim)))  # type: ignore[call-overload]  # numpy's stub lacks several axes
    step = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    return np.asarray(windows[step])


def _cells(i: Inputs) -> tuple[int, ...]:
    return tuple(range(-len(i.integers("kernel_sizes")), 0))


@computes("max_pool")
def _max_pool(i: Inputs) -> Array:
    return np.asarray(_windows(i, i.floats(), -np.inf).max(axis=_cells(i)))


@computes("avg_pool")
def _avg_pool(i: Inputs) -> Array:
    x = i.floats()
    total = _windows(i, x, 0.0).sum(axis=_cells(i))
    if not i.flag("exclude_padding_from_average"):
        return np.asarray(total / np.float32(np.prod(i.integers("kernel_sizes"))), np.float32)
    counts = _windows(i, np.ones((1, 1, *x.shape[2:]), np.float32), 0.0).sum(axis=_cells(i))
    return np.asarray(total / counts, np.float32)
