"""How much each device may have stored: a token bucket each, in memory. Time is passed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

#: Bytes that a device may send at once: years of hourly reports from one that was offline.
BURST: Final = 16 * 1024 * 1024
#: Bytes a second, for ever: an update and a report in every second would still be within it.
RATE: Final = 1024.0
#: What a row costs beside the message's bytes.
_ROW: Final = 512
#: Devices that are remembered; one whose bucket is full again need not be.
_REMEMBERED: Final = 100_000


class Allowance:
    """Says whether a device may have more stored. Not for two threads at a time."""

    def __init__(self, monotonic: Callable[[], float], burst: int = BURST, rate: float = RATE) -> None:
        """Give each device `burst` bytes at once and `rate` a second; `monotonic` never goes back."""
        self._monotonic: Final = monotonic
        self._burst: Final = burst
        self._rate: Final = rate
        self._left: Final[dict[str, tuple[float, float]]] = {}

    def take(self, device: str, size: int) -> bool:
        """Return whether the device may have a message of so many bytes stored, and count it."""
        now = self._monotonic()
        left, then = self._left.pop(device, (float(self._burst), now))
        left = min(float(self._burst), left + (now - then) * self._rate)
        fits = left >= size + _ROW
        self._left[device] = (left - size - _ROW if fits else left, now)
        if len(self._left) > _REMEMBERED:
            self._forget(now)
        return fits

    def _forget(self, now: float) -> None:
        """Forget who has everything again; the others stay, for they are who the bucket is for."""
        full = [
            d for d, (left, then) in self._left.items() if left + (now - then) * self._rate >= self._burst
        ]
        for device in full:
            del self._left[device]
