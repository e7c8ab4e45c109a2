"""Exponential histograms: mergeable distributions with a bounded relative error.

Buckets and scales are OpenTelemetry's (data model of metrics, "ExponentialHistogram"): at scale s the base
is 2**(2**-s), and bucket i counts the values in (base**i, base**(i+1)]. When the buckets no longer fit, the
scale goes down by one: neighbours join, and the relative error grows.
"""

from __future__ import annotations

import math
from typing import Final

from fleet.errors import WireError
from fleet.telemetry import varint
from fleet.wire.messages import ExponentialHistogram

#: Bounds of the scale in OpenTelemetry's SDK specification.
MAX_SCALE: Final = 20
MIN_SCALE: Final = -10
#: What a device keeps: three histograms fit a report of 1 KiB.
DEVICE_BUCKETS: Final = 64
#: What the server keeps of merged ones: OpenTelemetry's default.
MERGED_BUCKETS: Final = 160
#: Powers of two that a float holds reach from -1074 to 1023.
_LARGEST_EXPONENT: Final = 1023.999
_SMALLEST_EXPONENT: Final = -1075


def bucket(value: float, scale: int) -> int:
    """Return the index of the bucket that counts a positive value.

    Powers of two are exact at every scale; elsewhere a value within rounding of a border may fall to either
    side, as the specification allows.
    """
    mantissa, exponent = math.frexp(value)
    exact = mantissa == 0.5  # noqa: PLR2004 - frexp's mantissa of a power of two
    if scale <= 0:
        return (exponent - (2 if exact else 1)) >> -scale
    if exact:
        return ((exponent - 1) << scale) - 1
    within = math.ceil(math.ldexp(math.log2(mantissa), scale)) - 1
    return (exponent << scale) + max(within, -(1 << scale))


def _shifted(counts: dict[int, int], by: int) -> dict[int, int]:
    joined: dict[int, int] = {}
    for index, count in counts.items():
        joined[index >> by] = joined.get(index >> by, 0) + count
    return joined


def _excess(low: int, high: int, buckets: int) -> int:
    """Return by how much the scale must go down for the span to fit."""
    by = 0
    while (high >> by) - (low >> by) >= buckets:
        by += 1
    return by


class HistogramBuilder:
    """Counts values, one at a time, into at most `max_buckets` buckets."""

    def __init__(self, max_buckets: int = DEVICE_BUCKETS) -> None:
        """Start empty, at the finest scale."""
        self._max_buckets: Final = max_buckets
        self._scale = MAX_SCALE
        self._counts: dict[int, int] = {}
        self._low = self._high = 0
        self._zero = 0
        self._sum = 0.0
        self._min = math.inf
        self._max = 0.0

    def add(self, value: float) -> None:
        """Count one value.

        Raises:
            ValueError: negative, infinite or not a number.
        """
        if not 0.0 <= value < math.inf:
            raise ValueError(f"histogram: expected a finite value of at least 0, got {value}")
        value = float(value)  # numpy's floats are no MessagePack
        self._sum += value
        self._min = min(self._min, value)
        self._max = max(self._max, value)
        if value == 0.0:
            self._zero += 1
            return
        index = bucket(value, self._scale)
        low, high = (min(self._low, index), max(self._high, index)) if self._counts else (index, index)
        if high - low >= self._max_buckets:
            by = _excess(low, high, self._max_buckets)
            self._scale -= by
            self._counts = _shifted(self._counts, by)
            index, low, high = index >> by, low >> by, high >> by
        self._low, self._high = low, high
        self._counts[index] = self._counts.get(index, 0) + 1

    def freeze(self) -> ExponentialHistogram:
        """Return what was counted so far."""
        if not self._counts and not self._zero:
            return ExponentialHistogram()
        return _made(
            self._scale, self._counts, zero=self._zero, total=self._sum, low=self._min, high=self._max
        )


def _made(
    scale: int, counts: dict[int, int], *, zero: int, total: float, low: float, high: float
) -> ExponentialHistogram:
    if not counts:
        return ExponentialHistogram(zero=zero, sum=total, min=low, max=high)
    first, last = min(counts), max(counts)
    return ExponentialHistogram(
        scale=scale,
        offset=first,
        counts=varint.encode(counts.get(i, 0) for i in range(first, last + 1)),
        zero=zero,
        sum=total,
        min=low,
        max=high,
    )


def buckets(histogram: ExponentialHistogram) -> dict[int, int]:
    """Return the counts of the buckets that are not empty, by index.

    Raises:
        WireError: the counts are malformed, or the buckets lie where no float does.
    """
    if not MIN_SCALE <= histogram.scale <= MAX_SCALE:
        raise WireError(f"histogram: expected a scale of {MIN_SCALE} to {MAX_SCALE}, got {histogram.scale}")
    counts = varint.decode(histogram.counts)
    last = histogram.offset + len(counts)
    if not (
        math.ldexp(_SMALLEST_EXPONENT, histogram.scale) - 1 <= histogram.offset
        and last <= math.ldexp(_LARGEST_EXPONENT + 1, histogram.scale) + 1
    ):
        raise WireError(f"histogram: expected buckets of finite values, got {histogram.offset} to {last}")
    return {histogram.offset + i: count for i, count in enumerate(counts) if count}


def count(histogram: ExponentialHistogram) -> int:
    """Return how many values were counted."""
    return histogram.zero + sum(varint.decode(histogram.counts))


def coarser(histogram: ExponentialHistogram, max_buckets: int) -> ExponentialHistogram:
    """Return the same distribution in at most `max_buckets` buckets."""
    counts = buckets(histogram)
    if not counts:
        return histogram
    by = _excess(min(counts), max(counts), max_buckets)
    return _made(
        histogram.scale - by,
        _shifted(counts, by),
        zero=histogram.zero,
        total=histogram.sum,
        low=histogram.min,
        high=histogram.max,
    )


def merge(
    a: ExponentialHistogram, b: ExponentialHistogram, max_buckets: int = MERGED_BUCKETS
) -> ExponentialHistogram:
    """Return the distribution of both together: associative and commutative in scale and counts."""
    if not count(a):
        return coarser(b, max_buckets)
    if not count(b):
        return coarser(a, max_buckets)
    counts_a, counts_b = buckets(a), buckets(b)
    scale = min((x.scale for x, filled in ((a, counts_a), (b, counts_b)) if filled), default=0)
    joined = _shifted(counts_a, max(a.scale - scale, 0))
    for index, number in _shifted(counts_b, max(b.scale - scale, 0)).items():
        joined[index] = joined.get(index, 0) + number
    by = _excess(min(joined), max(joined), max_buckets) if joined else 0
    return _made(
        scale - by,
        _shifted(joined, by),
        zero=a.zero + b.zero,
        total=a.sum + b.sum,
        low=min(a.min, b.min),
        high=max(a.max, b.max),
    )


def quantile(histogram: ExponentialHistogram, q: float) -> float | None:
    """Return the value below which a share `q` of the values lies; None when there are none.

    The result is the geometric middle of the bucket in which the rank falls, kept between minimum and
    maximum, so its relative error is at most that of half a bucket: 2 ** (2 ** -scale / 2) - 1.
    """
    counts = buckets(histogram)
    rank = q * (histogram.zero + sum(counts.values()) - 1)
    if rank < 0.0:
        return None
    seen = histogram.zero
    if rank < seen:
        return 0.0
    for index in sorted(counts):
        seen += counts[index]
        if rank < seen:
            middle = min(math.ldexp(index + 0.5, -histogram.scale), _LARGEST_EXPONENT)
            return min(max(math.pow(2.0, middle), histogram.min), histogram.max)
    return histogram.max
