"""Who may read blobs over HTTP: enrolled devices, each by a proof with its own key."""

from __future__ import annotations

import threading
from datetime import datetime, timezone
from typing import Final

from fleet.errors import TrustError, WireError
from fleet.ids import DeviceId
from fleet.trust import proof
from fleet.trust.proof import Proof
from fleet.wire import blob_access
from server.db.engine import Database
from server.db.tables import Device
from server.errors import ForbiddenError, UnauthenticatedError
from server.ports.clock import Clock
from server.services.identity.enrolment import identity_key

#: A device that was let in is not asked about again for so many seconds: it asks for a range at a time.
_REMEMBERED: Final = 5.0
_MOST_REMEMBERED: Final = 10_000


class BlobReading:
    """Checks the proofs. It may be called from any thread."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Keep what is needed."""
        self._database: Final = database
        self._clock: Final = clock
        self._lock: Final = threading.Lock()
        self._let_in: Final[dict[str, float]] = {}

    def check(self, header: str) -> None:
        """Check that an enrolled device asks, now.

        Args:
            header: the value of `fleet.wire.blob_access.HEADER`.

        Raises:
            UnauthenticatedError: it does not prove who it is; the answer's date tells it the time.
            ForbiddenError: it is not enrolled any more.
        """
        now = self._clock.now()
        with self._lock:
            if self._let_in.get(header, 0.0) > now:
                return
        self._check(header, now)
        with self._lock:
            if len(self._let_in) >= _MOST_REMEMBERED:
                self._let_in.clear()
            self._let_in[header] = now + _REMEMBERED

    def _check(self, header: str, now: float) -> None:
        try:
            shown = Proof.parse(header)
            proof.check_time(shown, datetime.fromtimestamp(now, timezone.utc))
            device = self._device(shown.device)
            proof.verify(shown, identity_key(device), blob_access.PURPOSE, b"")
        except (TrustError, WireError) as error:
            raise UnauthenticatedError(
                f"expected a device's proof in {blob_access.HEADER}: {error}"
            ) from error
        if device.revoked_at is not None:
            raise ForbiddenError(f"device {device.id}: revoked")

    def _device(self, device_id: DeviceId) -> Device:
        with self._database.read() as session:
            device = session.get(Device, device_id)
        if device is None:
            raise TrustError(f"{device_id} is not enrolled")
        return device
