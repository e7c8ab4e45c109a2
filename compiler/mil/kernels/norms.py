"""Softmax and normalisations."""

from __future__ import annotations

import numpy as np

from compiler.mil.kernels import Floats, Inputs, computes
from compiler.tensors import Array


@computes("softmax")
def _softmax(i: Inputs) -> Array:
    x, axis = i.floats(), i.integer("axis", -1)
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True), np.float32)


def _across(values: Floats, rank: int) -> Floats:
    return values.reshape(1, -1, *[1] * (rank - 2))


@computes("batch_norm")
def _batch_norm(i: Inputs) -> Array:
    x = i.floats()
    factor = 1 / np.sqrt(i.floats("variance") + i.number("epsilon", 1e-5))
    if i.has("gamma"):
        factor = factor * i.floats("gamma")
    shift = (i.floats("beta") if i.has("beta") else np.float32(0)) - i.floats("mean") * factor
    return x * _across(np.asarray(factor), x.ndim) + _across(np.asarray(shift), x.ndim)


def _standard(x: Floats, axes: tuple[int, ...], epsilon: np.float32) -> Floats:
    centred = x - x.mean(axis=axes, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + epsilon), np.float32)


@computes("instance_norm")
def _instance_norm(i: Inputs) -> Array:
    x = i.floats()
    found = _standard(x, tuple(range(2, x.ndim)), i.number("epsilon", 1e-5))
    found = found * _across(i.floats("gamma"), x.ndim) if i.has("gamma") else found
    return found + _across(i.floats("beta"), x.ndim) if i.has("beta") else found


@computes("layer_norm")
def _layer_norm(i: Inputs) -> Array:
    x = i.floats()
    axes = tuple(a % x.ndim for a in i.integers("axes", range(x.ndim)))
    found = _standard(x, axes, i.number("epsilon", 1e-5))
    spread = [x.shape[a] if a in axes else 1 for a in range(x.ndim)]
    found = found * i.floats("gamma").reshape(spread) if i.has("gamma") else found
    return found + i.floats("beta").reshape(spread) if i.has("beta") else found


@computes("local_response_norm")
def _local_response_norm(i: Inputs) -> Array:
    x, size = i.floats(), i.integer("size")
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    sums = np.zeros_like(x)
    channels = x.shape[1]
    for c in range(channels):
        sums[:, c] = (x[:, max(c - before, 0) : c + after + 1] ** 2).sum(axis=1)
    base = i.number("k", 1.0) + i.number("alpha", 1e-4) / np.float32(size) * sums
    return np.asarray(x / base ** i.number("beta", 0.75), np.float32)
