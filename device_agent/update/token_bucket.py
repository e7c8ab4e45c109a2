"""How many bytes may be asked for now: a device takes no more than its share. Pure: time is passed in."""

from __future__ import annotations

import hashlib
import math
from typing import Final


class TokenBucket:
    """Lets `rate` bytes a second through; after a pause, one second's worth at once.

    Turner's leaky bucket as a meter (ITU-T I.371), filled by time. A chunk may be larger than what the bucket
    holds: then it is overdrawn, and paid for in full before the next.
    """

    def __init__(self, rate: int = 0) -> None:
        """Begin full; a rate of 0 lets everything through."""
        self._rate: Final = rate
        self._tokens = float(rate)
        self._at: float | None = None

    def take(self, size: int, now: float) -> bool:
        """Take this many bytes out; return whether that may be now."""
        if not self._rate:
            return True
        self._fill(now)
        if self._tokens < 0:
            return False
        self._tokens -= size
        return True

    def ready_at(self, now: float) -> float:
        """Return when something may be taken: `now`, or later."""
        if not self._rate:
            return now
        self._fill(now)
        return now + max(0.0, -self._tokens / self._rate)

    def _fill(self, now: float) -> None:
        passed = 0.0 if self._at is None else max(0.0, now - self._at)
        self._tokens = min(float(self._rate), self._tokens + passed * self._rate)
        self._at = now


def delay(jitter: float, device: str, rollout: str) -> float:
    """Return how many seconds a device waits before it begins: its own share of the group's jitter.

    The same device and rollout always give the same delay, so a restart does not draw again; over devices the
    delays are spread evenly over [0, jitter).
    """
    drawn = int.from_bytes(hashlib.sha256(f"{rollout}/{device}".encode()).digest()[:6], "big")
    return jitter * drawn / math.ldexp(1.0, 48)
