"""What an operator may set for a running agent."""

from __future__ import annotations

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's settings.

    Attributes:
        window: seconds of a telemetry window.
        health_window: seconds that a candidate answers before it is committed.
        threads: of one inference; 0 lets the runtime choose.
        outbox_bytes: the outbox's file never grows past it.
        tick: seconds between looks at what is due.
        resend: seconds after which a record without acknowledgement is sent again; doubles with each attempt.
        broker: used instead of the broker that the server named, "" for that: the one of the device's site.
        http_after: seconds without a chunk from the broker before chunks are asked for over HTTP: for devices
            on whose line that costs money.
        site_broker: where this device serves chunks to its neighbours, "" for nowhere.
        site_budget: bytes that the site's broker may retain for that.
    """

    window: float = 3600.0
    health_window: float = 30.0
    threads: int = 0
    outbox_bytes: int = 64 * 1024 * 1024
    tick: float = 0.25
    resend: float = 3.0
    broker: str = ""
    http_after: float = 0.0
    site_broker: str = ""
    site_budget: int = 1024 * 1024 * 1024

    @property
    def shadow_window(self) -> float:
        """Seconds that a candidate runs beside the active bundle at most."""
        return self.health_window / 3.0
