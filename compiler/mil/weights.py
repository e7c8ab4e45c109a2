"""How a candidate stores its weights: as floats, as int8 with scales, or as indices into a palette."""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from compiler.mil.values import Value, emit
from compiler.tensors import Array

#: Smaller weights gain nothing.
SMALLEST: Final = 64
_INT8: Final = 127
_ROUNDS: Final = 25
_SAMPLE: Final = 1 << 16

Floats = npt.NDArray[np.float32]


class Weights(Protocol):
    """A way to store weights."""

    def store(self, array: Array, axis: int) -> Value:
        """Return a weight as an operation takes it; axis counts output channels."""
        ...


class Plain:
    """Weights stay floats."""

    def store(self, array: Array, axis: int) -> Value:  # noqa: ARG002 - the port's
        """Return the weight as it is."""
        return array


class Int8:
    """Weights become int8 with one symmetric scale per output channel (Core ML's linear quantization)."""

    def __init__(self) -> None:
        """Have stored nothing yet."""
        self.stored = 0

    def store(self, array: Array, axis: int) -> Value:
        """Return the weight quantized, or as it is where it is small or of integers."""
        if array.size < SMALLEST or not np.issubdtype(array.dtype, np.floating):
            return array
        self.stored += 1
        axis %= array.ndim
        others = tuple(x for x in range(array.ndim) if x != axis)
        floats = array.astype(np.float32)
        scale = np.maximum(np.abs(floats).max(axis=others), np.finfo(np.float32).tiny) / _INT8
        spread = scale.reshape([-1 if x == axis else 1 for x in range(array.ndim)])
        steps = np.clip(np.rint(floats / spread), -_INT8, _INT8).astype(np.int8)
        return affine(steps, scale.astype(np.float32), np.zeros(scale.shape, np.int8), axis)


class Palette:
    """Weights become indices into a table of 2^bits values per tensor (Core ML's palettization)."""

    def __init__(self, bits: int) -> None:
        """Take the bits of an index: 1, 2, 4, 6 or 8."""
        self._bits: Final = bits
        self.stored = 0

    def store(self, array: Array, axis: int) -> Value:  # noqa: ARG002 - one palette per tensor
        """Return the weight as indices, or as it is where the palette would not pay."""
        if array.size < SMALLEST << self._bits >> 2 or not np.issubdtype(array.dtype, np.floating):
            return array
        self.stored += 1
        floats = array.astype(np.float32)
        palette = clusters(floats, 1 << self._bits)
        return emit(
            "constexpr_lut_to_dense",
            indices=packed(nearest(floats.reshape(-1), palette), self._bits),
            lut=palette,
            shape=np.array(array.shape, np.uint32),
        )


def affine(steps: Array, scale: Array, zero_point: Array, axis: int) -> Value:
    """Return a weight of integers that Core ML expands to floats: scale * (steps - zero point)."""
    if not scale.ndim:
        zero_point = zero_point.reshape(())
    return emit(
        "constexpr_affine_dequantize", quantized_data=steps, zero_point=zero_point, scale=scale, axis=axis
    )


def clusters(values: Floats, count: int) -> Floats:
    """Return sorted centres of one-dimensional k-means (Lloyd 1982), from quantiles: no chance in it."""
    flat = np.sort(values.reshape(-1))[:: max(1, values.size // _SAMPLE)].astype(np.float64)
    centres = np.quantile(flat, (np.arange(count) + 0.5) / count)
    sums = np.concatenate([[0.0], np.cumsum(flat)])
    for _ in range(_ROUNDS):
        edges = np.searchsorted(flat, (centres[:-1] + centres[1:]) / 2)
        starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [flat.size]])
        members = ends - starts
        means = (sums[ends] - sums[starts]) / np.maximum(members, 1)
        centres = np.where(members > 0, means, centres)
    return np.sort(centres).astype(np.float32)


def nearest(values: Floats, centres: Floats) -> npt.NDArray[np.uint8]:
    """Return the index of the centre nearest to each value; the centres are sorted."""
    return np.searchsorted((centres[:-1] + centres[1:]) / 2, values).astype(np.uint8)


def packed(indices: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Return indices packed from the least significant bit on, as Core ML reads them."""
    spread = np.unpackbits(indices[:, None], axis=1, bitorder="little")[:, :bits]
    return np.packbits(spread.reshape(-1), bitorder="little")
