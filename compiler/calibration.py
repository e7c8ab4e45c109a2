"""Finding the ranges of activations: one histogram per tensor, and several readings of it.

Both passes hold the tensors of one sample at a time, so memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from compiler.tensors import Arrays

BINS: Final = 2048
LEVELS: Final = 255
#: Larger tensors are read in strides: their distribution shows long before.
ELEMENTS: Final = 1 << 18

Floats = npt.NDArray[np.float64]
Range = tuple[float, float]


class Histogram:
    """Counts of one tensor's values in equal bins over its whole range."""

    def __init__(self, low: float, high: float) -> None:
        """Take the range, which is widened where it is empty."""
        self.low: Final = low
        self.high: Final = high if high > low else low + 1e-6
        self.counts: Final = np.zeros(BINS, np.int64)

    def add(self, values: npt.NDArray[np.generic]) -> None:
        """Count some values."""
        self.counts[:] += np.histogram(values, bins=BINS, range=(self.low, self.high))[0]

    @property
    def centres(self) -> Floats:
        """The middle of each bin."""
        edges = np.linspace(self.low, self.high, BINS + 1)
        return (edges[:-1] + edges[1:]) / 2


def collect(samples: Callable[[], Iterable[Arrays]]) -> dict[str, Histogram]:
    """Return a histogram for each float tensor.

    Args:
        samples: gives, each time it is called, the same tensors of each sample by name.
    """
    ranges: dict[str, Range] = {}
    for tensors in samples():
        for name, values in tensors.items():
            if values.size and np.issubdtype(values.dtype, np.floating):
                low, high = float(values.min()), float(values.max())  # type: ignore[attr-defined]  # a generic array
                before = ranges.get(name, (low, high))
                ranges[name] = (min(low, before[0]), max(high, before[1]))
    histograms = {name: Histogram(*range_) for name, range_ in ranges.items()}
    for tensors in samples():
        for name, histogram in histograms.items():
            if name in tensors:
                flat = tensors[name].reshape(-1)
                histogram.add(flat[:: max(1, flat.size // ELEMENTS)])
    return histograms


def minmax(histogram: Histogram) -> Range:
    """Return the whole range: nothing is clipped."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram, share: float = 0.9999) -> Range:
    """Return the range that leaves out (1 - share) of the values at either end."""
    total = np.cumsum(histogram.counts) / histogram.counts.sum()
    edges = np.linspace(histogram.low, histogram.high, BINS + 1)
    low = edges[int(np.searchsorted(total, 1 - share, side="right"))]
    high = edges[min(int(np.searchsorted(total, share, side="left")) + 1, BINS)]
    return float(low), float(high)


def entropy(histogram: Histogram) -> Range:
    """Return the range whose quantized distribution is nearest to the float one.

    Kullback-Leibler divergence between the clipped distribution and its quantization, over symmetric
    shrinkings of the range (Migacz, "8-bit inference with TensorRT", GTC 2017), here for ranges that need
    not be symmetric about 0.
    """
    best, chosen = np.inf, minmax(histogram)
    zero = int(np.clip(np.searchsorted(histogram.centres, 0.0), 0, BINS))
    edges = np.linspace(histogram.low, histogram.high, BINS + 1)
    for keep in np.linspace(0.3, 1.0, 36):
        first = zero - int(np.ceil(zero * keep))
        last = zero + int(np.ceil((BINS - zero) * keep))
        if last - first < LEVELS:
            continue
        divergence = _divergence(histogram.counts, first, last)
        if divergence < best:
            best, chosen = divergence, (float(edges[first]), float(edges[last]))
    return chosen


def _divergence(counts: npt.NDArray[np.int64], first: int, last: int) -> float:
    clipped = counts[first:last].astype(np.float64)
    wanted = clipped.copy()
    wanted[0] += counts[:first].sum()
    wanted[-1] += counts[last:].sum()
    level = np.arange(last - first) * LEVELS // (last - first)
    mass = np.bincount(level, clipped, LEVELS)
    filled = np.bincount(level, clipped > 0, LEVELS)
    spread = np.divide(mass, filled, out=np.zeros(LEVELS), where=filled > 0)
    quantized = np.where(clipped > 0, spread[level], 0.0)
    p, q = wanted / wanted.sum(), quantized / max(quantized.sum(), 1.0)
    return float(np.sum(np.where(p > 0, p * np.log((p + 1e-12) / (q + 1e-12)), 0.0)))


#: By the name that candidates carry.
METHODS: Final[dict[str, Callable[[Histogram], Range]]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
}
