"""The end of a device: shut out at once, or told to wipe itself first."""

from __future__ import annotations

from typing import Final

from sqlmodel import Session

from server.db.tables import Device
from server.errors import ConflictError
from server.ports.clock import Clock
from server.services.director.assignments import Assignments
from server.services.identity.revocations import Revocations
from server.services.people.audit import Audit
from server.services.people.roles import SYSTEM, Principal
from server.services.rollouts.steps import RolloutSteps


class Farewell:
    """Ends devices, each time in the caller's transaction."""

    def __init__(
        self,
        clock: Clock,
        audit: Audit,
        steps: RolloutSteps,
        assignments: Assignments,
        revocations: Revocations,
    ) -> None:
        """Keep what is needed."""
        self._clock: Final = clock
        self._audit: Final = audit
        self._steps: Final = steps
        self._assignments: Final = assignments
        self._revocations: Final = revocations

    def revoke(self, session: Session, actor: Principal, device: Device) -> None:
        """Shut a device out for good: password and certificates end, and no rollout waits for it."""
        device.revoked_at = device.revoked_at or self._clock.now()
        device.password_hash = ""
        device.online = False
        session.add(device)
        self._revocations.revoke(session, device.id)
        self._steps.cancel_device(session, device.id)
        self._audit.record(session, actor, "device.revoke", f"device {device.id}")

    def decommission(self, session: Session, actor: Principal, device: Device, *, now: bool) -> None:
        """Tell a device to wipe itself; it is shut out when it says that it does, or at once.

        Args:
            session: the caller's transaction.
            actor: who asks.
            device: the device.
            now: shut it out at once. If it is not connected, it never hears that it shall wipe itself.

        Raises:
            ConflictError: it is shut out already.
        """
        if device.revoked_at is not None:
            raise ConflictError(f"device {device.id}: shut out already; it cannot be told anything")
        if device.decommission_at is None:
            device.decommission_at, device.decommissioned_at = self._clock.now(), None
            session.add(device)
            self._steps.cancel_device(session, device.id)
            self._assignments.decommission(session, device.id)
            subject = f"device {device.id}"
            self._audit.record(session, actor, "device.decommission", subject, after={"now": now})
        if now:
            self.revoke(session, actor, device)

    def decommissioned(self, session: Session, device: Device) -> None:
        """Shut out a device that wipes itself, as it was told to.

        One that was not told to stays: whoever has its site's broker could say so in its name, and what was
        shut out can only be enrolled again. That it was said is noted, once.
        """
        asked, known = device.decommission_at is not None, device.decommissioned_at is not None
        device.decommissioned_at = self._clock.now()
        session.add(device)
        if asked or not known:
            subject = f"device {device.id}"
            self._audit.record(session, SYSTEM, "device.wiped", subject, after={"asked": asked})
        if asked:
            self.revoke(session, SYSTEM, device)
