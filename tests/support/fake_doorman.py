"""A doorman that remembers whom it threw out."""

from __future__ import annotations

from collections.abc import Callable

from fleet.ids import DeviceId
from server.ports.broker import Credential


class FakeDoorman:
    """Implements `server.ports.broker.Doorman`.

    Attributes:
        up_to_date: the broker refuses what is revoked.
        kicked: whom it threw out, and the certificate that was shown for it.
    """

    def __init__(self) -> None:
        self.up_to_date = True
        self.kicked: list[tuple[str, bytes]] = []
        self.probes: list[bytes] = []

    def refuses(self, probe: Credential) -> bool:
        """Return whether the broker refuses the certificate."""
        self.probes.append(probe.certificate)
        return self.up_to_date

    def kick(self, device: DeviceId, visit: Callable[[], Credential]) -> None:
        """Throw a device out."""
        self.kicked.append((str(device), visit().certificate))
