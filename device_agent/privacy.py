"""What of a request may leave the device: each data class keeps less than the one after it.

`features` sends a feature output of the model instead of its inputs; `downscaled` and `crop` keep a picture's
shape for the cloud model, with less in it. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from device_agent.ports import Array

#: The output that carries features, by convention.
FEATURES: Final = "features"
_IMAGE_RANK: Final = 4
_CHANNELS: Final = (1, 3, 4)


def reduced(
    data_class: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
) -> dict[str, Array] | None:
    """Return what may leave under a data class, or None when that class makes no sense for this model."""
    if data_class == "raw":
        return dict(inputs)
    if data_class == "features":
        return {FEATURES: outputs[FEATURES]} if FEATURES in outputs else None
    if data_class in ("downscaled", "crop") and inputs and all(_rows(x) is not None for x in inputs.values()):
        change = _downscaled if data_class == "downscaled" else _crop
        return {name: change(array, _rows(array) or 0) for name, array in inputs.items()}
    return None


def _rows(array: Array) -> int | None:
    """Return the axis that counts a picture's rows (NCHW or NHWC), None when it is no picture."""
    if array.ndim != _IMAGE_RANK:
        return None
    if array.shape[1] in _CHANNELS:
        return 2
    return 1 if array.shape[3] in _CHANNELS else None


def _downscaled(array: Array, rows: int) -> Array:
    """Return the picture with each 2x2 block made one colour: a quarter of its detail."""
    small = array
    for axis in (rows, rows + 1):
        even = small.shape[axis] // 2 * 2
        first = np.take(small, range(0, even, 2), axis=axis).astype(np.float64)
        second = np.take(small, range(1, even, 2), axis=axis).astype(np.float64)
        merged = np.repeat((first + second) / 2, 2, axis=axis)
        rest = np.take(small, range(even, small.shape[axis]), axis=axis).astype(np.float64)
        small = np.concatenate((merged, rest), axis=axis)
    return small.astype(array.dtype)


def _crop(array: Array, rows: int) -> Array:
    """Return the picture with all but its middle blanked: half of each side is kept."""
    mask = np.zeros(array.shape, dtype=bool)
    height, width = array.shape[rows], array.shape[rows + 1]
    window = [slice(None)] * _IMAGE_RANK
    window[rows] = slice(height // 4, height - height // 4)
    window[rows + 1] = slice(width // 4, width - width // 4)
    mask[tuple(window)] = True
    return np.where(mask, array, np.zeros((), array.dtype))
