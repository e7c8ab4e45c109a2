"""What the services need to know about time."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """A wall clock."""

    def now(self) -> float:
        """Return seconds since the Unix epoch."""
