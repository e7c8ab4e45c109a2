"""Finding the ranges of activations: one histogram per tensor, and several readings of it.

Both passes hold the tensors of one sample at a time, so memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
        """Count some values, which lie in the range or are not finite: then they do not count."""
        finite = values[np.isfinite(values)].astype(np.float64)
        places = (finite - self.low) * (BINS / (self.high - self.low))
        self.counts[:] += np.bincount(places.astype(np.int64).clip(0, BINS - 1), minlength=BINS)

    @property
    def centres(self) -> Floats:
        """The middle of each bin."""
        edges = np.linspace(self.low, self.high, BINS + 1)
        return (edges[:-1] + edges[1:]) / 2


def packed(histograms: Mapping[str, Histogram]) -> Arrays:
    """Return histograms as arrays that a file can hold."""
    return {
        "names": np.array(list(histograms), dtype=np.str_),
        "ranges": np.array([(x.low, x.high) for x in histograms.values()], np.float64).reshape(-1, 2),
        "counts": np.array([x.counts for x in histograms.values()], np.int64).reshape(-1, BINS),
    }


def unpacked(arrays: Arrays) -> dict[str, Histogram]:
    """Return the histograms that `packed` made arrays of."""
    found = {}
    for name, (low, high), counts in zip(
        arrays["names"].tolist(), arrays["ranges"].tolist(), arrays["counts"], strict=True
    ):
        found[name] = Histogram(low, high)
        found[name].counts[:] = counts
    return found


def bounds(values: npt.NDArray[np.generic]) -> Range | None:
    """Return the smallest and the largest finite value; None where there is none, or no float.

    An attention mask is infinite where nothing is to be seen, and no integer stands for that.
    """
    if not values.size or not np.issubdtype(values.dtype, np.floating):
        return None
    low, high = float(values.min()), float(values.max())
    if np.isfinite(low) and np.isfinite(high):
        return low, high
    return bounds(values[np.isfinite(values)])


def widened(before: Range | None, found: Range) -> Range:
    """Return the range that holds both."""
    return found if before is None else (min(before[0], found[0]), max(before[1], found[1]))


def collect(samples: Callable[[], Iterable[Arrays]]) -> dict[str, Histogram]:
    """Return a histogram for each float tensor.

    Args:
        samples: gives, each time it is called, the same tensors of each sample by name.
    """
    ranges: dict[str, Range] = {}
    for tensors in samples():
        for name, values in tensors.items():
            if (found := bounds(values)) is not None:
                ranges[name] = widened(ranges.get(name), found)
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


def mse(histogram: Histogram) -> Range:
    """Return the range with the smallest expected squared error of quantization.

    A value inside is off by the step's variance, a twelfth of its square; one outside by its distance to the
    range. Ends shrink towards zero together, as most activations have one end there (cf. Banner et al.,
    "Post training 4-bit quantization of convolutional networks for rapid-deployment", 2019).
    """
    centres, counts = histogram.centres, histogram.counts
    best, chosen = np.inf, minmax(histogram)
    for keep in np.linspace(0.2, 1.0, 65):
        low, high = keep * min(histogram.low, 0.0), keep * max(histogram.high, 0.0)
        outside = centres - np.clip(centres, low, high)
        step = (high - low) / LEVELS
        error = float((counts * (outside**2 + np.where(outside == 0.0, step**2 / 12, 0.0))).sum())
        if error < best:
            best, chosen = error, (float(low), float(high))
    return chosen


#: By the name that candidates carry.
METHODS: Final[dict[str, Callable[[Histogram], Range]]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
}
