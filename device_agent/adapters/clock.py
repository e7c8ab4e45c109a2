"""The device's clocks."""

from __future__ import annotations

import time
import uuid
from datetime import datetime, timezone


class SystemClock:
    """The clocks of the operating system, and names that never repeat."""

    def now(self) -> datetime:
        """Return the wall clock's time, aware, in UTC."""
        return datetime.now(timezone.utc)

    def time(self) -> float:
        """Return the wall clock's seconds since the Unix epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that never go back while the agent runs."""
        return time.monotonic()

    def unique(self) -> str:
        """Return an id that nobody else makes."""
        return uuid.uuid4().hex
