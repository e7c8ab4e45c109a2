"""Products: matrices and convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from compiler.mil.kernels import Floats, Inputs, bounded, computes
from compiler.tensors import Array


@computes("matmul")
def _matmul(i: Inputs) -> Array:
    x, y = i.array("x"), i.array("y")
    x = x.swapaxes(-1, -2) if i.flag("transpose_x") else x
    y = y.swapaxes(-1, -2) if i.flag("transpose_y") else y
    return np.asarray(np.matmul(x, y))


@computes("linear")
def _linear(i: Inputs) -> Array:
    product = np.matmul(i.floats(), i.floats("weight").T)
    return np.asarray(product + i.floats("bias") if i.has("bias") else product)


@computes("conv")
def _conv(i: Inputs) -> Array:
    x, weight = i.floats(), i.floats("weight")
    rank = weight.ndim - 2
    strides, dilations = i.integers("strides", [1] * rank), i.integers("dilations", [1] * rank)
    padded = _padded(x, _pads(i, x.shape[2:], weight.shape[2:], strides, dilations))
    found = convolve(padded, weight, strides, dilations, i.integer("groups", 1))
    return _shifted(i, found)


def _shifted(i: Inputs, found: Floats) -> Floats:
    """Add the bias, if there is one, to each channel."""
    if not i.has("bias"):
        return found
    return found + i.floats("bias").reshape(1, -1, *[1] * (found.ndim - 2))


def _spatial(*cuts: slice) -> tuple[slice, ...]:
    """Return an index that leaves samples and channels whole."""
    return (slice(None), slice(None), *cuts)


def _cuts(
    place: tuple[int, ...], sizes: Sequence[int], strides: list[int], dilations: list[int]
) -> tuple[slice, ...]:
    """Return where one tap of a kernel meets a padded tensor."""
    return tuple(
        slice(p * d, p * d + (n - 1) * s + 1, s)
        for p, d, n, s in zip(place, dilations, sizes, strides, strict=True)
    )


def _pads(
    i: Inputs, sizes: Sequence[int], kernel: Sequence[int], strides: list[int], dilations: list[int]
) -> list[tuple[int, int]]:
    """Return the padding at either end of each spatial dimension."""
    kind = i.text("pad_type", "valid")
    if kind == "custom":
        given = i.integers("pad", [0] * 2 * len(sizes))
        return list(zip(given[::2], given[1::2], strict=True))
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    total = [
        max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    if kind == "same":
        return [(x // 2, x - x // 2) for x in total]
    return [(x - x // 2, x // 2) for x in total]


def _padded(x: Floats, pads: list[tuple[int, int]]) -> Floats:
    if not any(map(any, pads)):
        return x
    bounded(*x.shape[:2], *(size + sum(pair) for size, pair in zip(x.shape[2:], pads, strict=True)))
    return np.pad(x, [(0, 0), (0, 0), *pads])


def convolve(x: Floats, weight: Floats, strides: list[int], dilations: list[int], groups: int) -> Floats:
    """Return the valid cross-correlation of x `[N, C, …]` with weights `[O, C / groups, …]`."""
    out, kernel, batch = weight.shape[0], weight.shape[2:], len(x)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    spatial = [(n - span) // s + 1 for n, span, s in zip(x.shape[2:], spans, strides, strict=True)]
    if groups == x.shape[1] and weight.shape[1] == 1:
        return _depthwise(x, weight, strides, dilations, spatial)
    if all(k == 1 for k in kernel):
        columns = x[_spatial(*(slice(None, None, s) for s in strides))]
    else:
        axes = tuple(range(2, x.ndim))
        windows = sliding_window_view(x, spans, axis=axes)  # type: ignore[call-overload]  # numpy's stub lacks several axes
        step = _spatial(*(slice(None, None, x) for x in (*strides, *dilations)))
        rank = len(kernel)
        columns = windows[step].transpose(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
    depth = weight[0].size
    columns = np.ascontiguousarray(columns).reshape(batch, groups, depth, -1)
    product: Floats = np.matmul(weight.reshape(1, groups, out // groups, depth), columns)
    return product.reshape(batch, out, *spatial)


def _depthwise(
    x: Floats, weight: Floats, strides: list[int], dilations: list[int], spatial: list[int]
) -> Floats:
    """Sum shifted copies: a channel of its own each, a product of matrices gains nothing."""
    batch, channels = x.shape[:2]
    times = weight.shape[0] // channels
    found = np.zeros((batch, channels, times, *spatial), np.float32)
    ones = [1] * len(spatial)
    for place in np.ndindex(*weight.shape[2:]):
        taps = np.moveaxis(weight[:, 0], 0, -1)[place]
        cut = _spatial(*_cuts(place, spatial, strides, dilations))
        found += np.asarray(taps).reshape(1, channels, times, *ones) * x[cut][:, :, None]
    return found.reshape(batch, -1, *spatial)


@computes("conv_transpose")
def _conv_transpose(i: Inputs) -> Array:
    """Spread each value over a kernel, then cut the padding off."""
    x, weight = i.floats(), i.floats("weight")
    rank, groups = weight.ndim - 2, i.integer("groups", 1)
    strides, dilations = i.integers("strides", [1] * rank), i.integers("dilations", [1] * rank)
    sizes, kernel = x.shape[2:], weight.shape[2:]
    full = [
        (n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(sizes, strides, kernel, dilations, strict=True)
    ]
    outs = weight.shape[1]
    bounded(len(x), groups, outs, *full)
    grouped = x.reshape(len(x), groups, -1, *sizes)
    split = weight.reshape(groups, -1, *weight.shape[1:])
    found = np.zeros((len(x), groups, outs, *full), np.float32)
    for place in np.ndindex(*kernel):
        taps = np.moveaxis(split, (0, 1, 2), (-3, -2, -1))[place]
        cut = (slice(None), *_spatial(*_cuts(place, sizes, strides, dilations)))
        found[cut] += np.einsum("ngc...,gco->ngo...", grouped, taps)
    found = found.reshape(len(x), groups * outs, *full)
    pads = i.integers("pad", [0] * 2 * rank) if i.text("pad_type", "valid") == "custom" else [0] * 2 * rank
    inside = tuple(slice(pads[2 * a], full[a] - pads[2 * a + 1]) for a in range(rank))
    found = found[_spatial(*inside)]
    return _shifted(i, found)
