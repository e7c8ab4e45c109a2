"""Which refusals are told to the server, and when. Pure: time is passed in.

Each is told once an hour, and only so many: whoever may write to the device's topics could otherwise fill the
outbox with refusals, and push out of it what the device has to report.

One that is only too old waits for a while. A device that was off for months finds an assignment of then on
the broker; the server signs a new one as soon as the device is back, and nobody need be told of an attack.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: Seconds for which the same refusal is no news: a retained message comes with every connect.
_AGAIN: Final = 3600.0
#: So many different ones in that time; more is one attack, and told well enough.
_MOST: Final = 64
#: Seconds in which a newer assignment may still explain an expired one.
_GRACE: Final = 60.0


class RefusalFilter:
    """Remembers what was told."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._told: Final[dict[Hashable, float]] = {}

    def lets_through(self, refusal: Hashable, now: float) -> bool:
        """Return whether to tell of a refusal, and remember that it was told.

        Args:
            refusal: what was refused, and why.
            now: monotonic seconds.
        """
        for old in [x for x, then in self._told.items() if now - then >= _AGAIN]:
            del self._told[old]
        if refusal in self._told or len(self._told) >= _MOST:
            return False
        self._told[refusal] = now
        return True


class Pending(Generic[T]):
    """The last refusal of something that is only too old."""

    def __init__(self) -> None:
        """Hold none."""
        self._held: tuple[T, float] | None = None

    def hold(self, refusal: T, now: float) -> None:
        """Wait with a refusal; one that is held already keeps its time. `now` is monotonic seconds."""
        self._held = (refusal, self._held[1] if self._held is not None else now + _GRACE)

    def explain(self) -> None:
        """Forget it: something newer has come."""
        self._held = None

    def due(self, now: float) -> T | None:
        """Return the refusal once nothing newer came in time, and forget it."""
        if self._held is None or now < self._held[1]:
            return None
        found, self._held = self._held[0], None
        return found
