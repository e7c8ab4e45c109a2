"""What it is worth to have a hard request answered by the cloud: the order of sending, and of giving up.

A full outbox drops the least valuable request, not the oldest. The worth is the probability that the
device's answer is wrong; it halves with age, and is counted per byte, because bytes are what is scarce.
An exponential decay keeps the order of any two requests the same for ever, so the priority can be stored
beside the request and indexed.
"""

from __future__ import annotations

import math
from typing import Final

#: After so many seconds an answer is worth half.
HALF_LIFE: Final = 3600.0
_LEAST: Final = 1e-6


def priority(*, score: float, created: float, size: int, half_life: float = HALF_LIFE) -> float:
    """Return the request's rank: send the highest first, drop the lowest first.

    Args:
        score: the device's calibrated confidence, 0 to 1.
        created: when the request was made, in seconds of one clock.
        size: bytes on the wire.
        half_life: seconds after which an answer is worth half.

    Returns:
        log2 of (probability that the device is wrong, per byte, decayed to time 0).
    """
    wrong = min(max(1.0 - score, _LEAST), 1.0)
    return math.log2(wrong) - math.log2(max(size, 1)) + created / half_life
