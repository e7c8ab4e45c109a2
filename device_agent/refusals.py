"""Which refusals are told to the server: each once an hour, and only so many. Pure: time is passed in.

Whoever may write to the device's topics could otherwise fill the outbox with refusals, and push out of it
what the device has to report.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

#: Seconds for which the same refusal is no news: a retained message comes with every connect.
_AGAIN: Final = 3600.0
#: So many different ones in that time; more is one attack, and told well enough.
_MOST: Final = 64


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
