"""Exact confidence bounds for a share, without scipy."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

_STEPS: Final = 60


def log_at_most(errors: int, samples: int, share: float) -> float:
    """Return log P(X <= errors) for X ~ Binomial(samples, share), 0 < share < 1."""
    i = np.arange(1, errors + 1, dtype=np.float64)
    choose = np.concatenate(([0.0], np.cumsum(np.log(samples - i + 1) - np.log(i))))
    k = np.arange(errors + 1, dtype=np.float64)
    terms = choose + k * math.log(share) + (samples - k) * math.log1p(-share)
    largest = float(terms.max())
    return min(largest + math.log(float(np.exp(terms - largest).sum())), 0.0)


def upper_bound(errors: int, samples: int, delta: float) -> float:
    """Return the share that the true one exceeds with a probability of at most `delta`.

    The one-sided bound of Clopper and Pearson ("The use of confidence or fiducial limits", Biometrika 1934):
    the share at which so few errors would have the probability `delta`, found by bisection.
    """
    if errors >= samples:
        return 1.0
    low, high = errors / samples, 1.0
    target = math.log(delta)
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        if middle >= 1.0 or log_at_most(errors, samples, middle) <= target:
            high = middle
        else:
            low = middle
    return high


def fewest_samples(alpha: float, delta: float) -> int:
    """Return how many samples without an error it takes for the upper bound to be at most `alpha`."""
    return math.ceil(math.log(delta) / math.log1p(-alpha))
