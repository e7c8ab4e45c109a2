"""The machine's clock."""

from __future__ import annotations

import time


class SystemClock:
    """Implements `server.ports.clock.Clock`."""

    def now(self) -> float:
        """Return seconds since the Unix epoch."""
        return time.time()
