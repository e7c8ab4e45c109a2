"""Whether what a model sees has moved away from its calibration data.

The test is a binned Kolmogorov-Smirnov statistic, always shown with n. The population stability index is
an effect size only: its customary limit of 0.2 cries wolf at n = 50 and sleeps at n = 1000.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

#: How sure an alarm must be: about one false one in a thousand windows.
SIGNIFICANCE: Final = 0.001


def kolmogorov_smirnov(a: Sequence[int], b: Sequence[int]) -> float:
    """Return the largest distance of two cumulative distributions over the same bins; 0 if one is empty."""
    total_a, total_b = sum(a), sum(b)
    if not total_a or not total_b:
        return 0.0
    largest = below_a = below_b = 0.0
    for in_a, in_b in zip(a, b, strict=True):
        below_a += in_a / total_a
        below_b += in_b / total_b
        largest = max(largest, abs(below_a - below_b))
    return largest


def critical_distance(n: int, m: int, significance: float = SIGNIFICANCE) -> float:
    """Return the distance that samples of n and m from one distribution exceed with this probability.

    The asymptotic two-sample Kolmogorov-Smirnov bound (Smirnov 1939); binning only makes it rarer.
    """
    if not n or not m:
        return math.inf
    return math.sqrt(-math.log(significance / 2.0) / 2.0 * (n + m) / (n * m))


def total_variation(a: Mapping[int, int], b: Mapping[int, int]) -> float:
    """Return half the summed difference of two label shares, 0 to 1; 0 when one is empty."""
    total_a, total_b = sum(a.values()), sum(b.values())
    if not total_a or not total_b:
        return 0.0
    # sorted: a sum of floats depends on its order, and sets have none
    return 0.5 * sum(abs(a.get(x, 0) / total_a - b.get(x, 0) / total_b) for x in sorted(set(a) | set(b)))


def stability_index(a: Sequence[int], b: Sequence[int]) -> float:
    """Return the population stability index, half a count added to each bin: an effect size, no test."""
    size_a, size_b = sum(a) + 0.5 * len(a), sum(b) + 0.5 * len(b)
    shares = (((x + 0.5) / size_a, (y + 0.5) / size_b) for x, y in zip(a, b, strict=True))
    return sum((p - q) * math.log(p / q) for p, q in shares)
