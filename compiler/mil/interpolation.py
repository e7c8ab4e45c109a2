"""Where the cells of a resized axis lie in the old one, and with which weights they read it.

After ONNX's definition of Resize (operator set 19).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
_TAPS = 4


def places(size: int, wanted: int, scale: float, how: str) -> Places:
    """Return the place in the old axis of each cell of the new one.

    Args:
        size: cells before.
        wanted: cells after.
        scale: of the axis, which need not be their quotient.
        how: ONNX's `coordinate_transformation_mode`.
    """
    x = np.arange(wanted, dtype=np.float64)
    if how == "align_corners":
        return x * (size - 1) / (wanted - 1) if wanted > 1 else x * 0
    if how == "asymmetric":
        return x / scale
    if how == "half_pixel_symmetric":
        shift = size / 2 * (1 - wanted / (scale * size))
        return shift + (x + 0.5) / scale - 0.5
    if how == "pytorch_half_pixel" and wanted == 1:
        return x * 0
    return (x + 0.5) / scale - 0.5


def nearest(where: Places, size: int, rounding: str) -> npt.NDArray[np.int64]:
    """Return the old cell that each new one copies; rounding is ONNX's `nearest_mode`."""
    whole = {
        "floor": np.floor(where),
        "ceil": np.ceil(where),
        "round_prefer_ceil": np.floor(where + 0.5),
    }.get(rounding, np.ceil(where - 0.5))
    found: npt.NDArray[np.int64] = np.clip(whole, 0, size - 1).astype(np.int64)
    return found


def linear(where: Places, size: int) -> Floats:
    """Return the matrix `[new, old]` of linear interpolation."""
    inside = np.clip(where, 0, size - 1)
    low = np.floor(inside).astype(np.int64)
    share = inside - low
    matrix = np.zeros((len(where), size))
    rows = np.arange(len(where))
    np.add.at(matrix, (rows, low), 1 - share)
    np.add.at(matrix, (rows, np.minimum(low + 1, size - 1)), share)
    return matrix.astype(np.float32)


def cubic(where: Places, size: int, a: float, *, exclude_outside: bool) -> Floats:
    """Return the matrix `[new, old]` of cubic convolution (Keys 1981), with the coefficient a."""
    first = np.floor(where).astype(np.int64) - 1
    cells = first[:, None] + np.arange(_TAPS)
    distance = np.abs(where[:, None] - cells)
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    taps = np.where(distance <= 1, near, far)
    if exclude_outside:
        taps = np.where((cells >= 0) & (cells < size), taps, 0.0)
        taps = taps / taps.sum(axis=1, keepdims=True)
    matrix = np.zeros((len(where), size))
    rows = np.broadcast_to(np.arange(len(where))[:, None], cells.shape)
    np.add.at(matrix, (rows, np.clip(cells, 0, size - 1)), taps)
    return matrix.astype(np.float32)
