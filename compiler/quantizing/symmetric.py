"""Ranges that are symmetric about zero, as signed integers with zero point 0 need them. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from compiler.quantizing import calibration
from compiler.quantizing.calibration import Histogram

#: -128 is left out, so that the range is as symmetric as the numbers.
LARGEST: Final = 127
#: A tensor that is zero throughout has any scale.
_SMALLEST: Final = 1e-6


def minmax(histogram: Histogram) -> float:
    """Return the largest magnitude: nothing is clipped."""
    return max(abs(histogram.low), abs(histogram.high), _SMALLEST)


def percentile(histogram: Histogram) -> float:
    """Return a magnitude that leaves out one value in ten thousand at either end."""
    low, high = calibration.percentile(histogram)
    return max(abs(low), abs(high), _SMALLEST)


def mse(histogram: Histogram) -> float:
    """Return the magnitude with the smallest expected squared error (as `calibration.mse`, symmetric)."""
    whole = minmax(histogram)
    tried = whole * np.linspace(0.2, 1.0, 65)
    return float(min(tried, key=lambda x: _error(histogram, float(x))))


def power_of_two(histogram: Histogram) -> float:
    """Return the magnitude with the smallest expected squared error whose scale is a power of two.

    The scale is the magnitude over 127; AMD's XINT8 looks for it the same way (AMD Quark documentation,
    power-of-two scales, MinMSE).
    """
    highest = math.ceil(math.log2(minmax(histogram) / LARGEST))
    tried = [LARGEST * 2.0**x for x in range(highest - 4, highest + 1)]
    return min(tried, key=lambda x: _error(histogram, x))


def _error(histogram: Histogram, largest: float) -> float:
    step = largest / LARGEST
    centres = histogram.centres
    outside = centres - np.clip(centres, -largest, largest)
    inside = np.where(outside == 0.0, step**2 / 12, 0.0)
    return float((histogram.counts * (outside**2 + inside)).sum())


#: By the name that candidates carry.
METHODS: Final[dict[str, Callable[[Histogram], float]]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "power-of-two": power_of_two,
}
