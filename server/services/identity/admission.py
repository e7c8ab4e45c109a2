"""Who is let in: keys that were registered before, and devices that wait for a person."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec
from sqlmodel import Session, col, select

from fleet.errors import WireError
from fleet.ids import DeviceId
from server.db.engine import Database
from server.db.identity_tables import PendingDevice, RegisteredKey
from server.db.locks import Turn, take
from server.db.tables import Device
from server.errors import ConflictError, InvalidError, NotFoundError
from server.ports.clock import Clock
from server.services.identity.authority import PROBE_NAME, SERVER_NAME
from server.services.identity.claims import Claims, known_target
from server.services.live import Live
from server.services.people.audit import Audit
from server.services.people.labels import checked_labels
from server.services.people.roles import Principal

APPROVED: Final = "approved"
REJECTED: Final = "rejected"
#: Keys in one request.
MOST_KEYS: Final = 5000
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}\Z")


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to register.

    Attributes:
        fingerprint: SHA-256 of the public key, 64 hex digits; colons and capitals are taken too.
        id: what the device will be called.
    """

    fingerprint: str
    id: str
    target: str
    labels: dict[str, str] = {}


class Admission:
    """Registers keys, and decides on devices that wait."""

    def __init__(self, database: Database, clock: Clock, audit: Audit, live: Live, claims: Claims) -> None:
        """Keep what is needed."""
        self._database: Final = database
        self._clock: Final = clock
        self._audit: Final = audit
        self._live: Final = live
        self._claims: Final = claims

    # --- keys that somebody has vouched for ---------------------------------------------------------

    def register(self, actor: Principal, keys: Sequence[NewKey]) -> list[RegisteredKey]:
        """Let devices with these keys enrol without a claim: all of them, or none.

        Raises:
            InvalidError: a value is wrong, or one stands twice.
            ConflictError: a key is registered already, or a name is taken.
        """
        if not 1 <= len(keys) <= MOST_KEYS:
            raise InvalidError(f"keys: expected 1 to {MOST_KEYS}, got {len(keys)}")
        rows = [self._checked(actor, key) for key in keys]
        for what in ("fingerprint", "device_id"):
            if len({getattr(row, what) for row in rows}) < len(rows):
                raise InvalidError(f"keys: a {what.replace('_', ' ')} stands twice")
        with self._database.write() as session:
            take(session, Turn.ENROLMENT)
            for row in rows:
                _check_free(session, row)
            session.add_all(rows)
            names = [row.device_id for row in rows]
            self._audit.record(session, actor, "key.register", f"{len(rows)} keys", after={"devices": names})
        return rows

    def _checked(self, actor: Principal, key: NewKey) -> RegisteredKey:
        fingerprint = key.fingerprint.replace(":", "").strip().lower()
        if not _FINGERPRINT.match(fingerprint):
            raise InvalidError(f"fingerprint: expected 64 hex digits, got {key.fingerprint[:80]!r}")
        return RegisteredKey(
            fingerprint=fingerprint,
            device_id=checked_id(key.id),
            target=known_target(key.target),
            labels=checked_labels(key.labels),
            created_by=actor.name,
            created_at=self._clock.now(),
        )

    def registered(self, offset: int = 0, limit: int = 100) -> list[RegisteredKey]:
        """Return registered keys by device id."""
        query = select(RegisteredKey).order_by(RegisteredKey.device_id).offset(offset).limit(limit)
        with self._database.read() as session:
            return list(session.exec(query))

    def forget_key(self, actor: Principal, fingerprint: str) -> None:
        """Let nobody enrol with a registered key any more; a device that has stays enrolled.

        Raises:
            NotFoundError: no such key is registered.
        """
        with self._database.write() as session:
            row = session.get(RegisteredKey, fingerprint)
            if row is None:
                raise NotFoundError(f"key {fingerprint[:16]}: not registered")
            session.delete(row)
            self._audit.record(session, actor, "key.forget", f"device {row.device_id}")

    # --- devices that wait --------------------------------------------------------------------------

    def waiting(self, offset: int = 0, limit: int = 100) -> list[PendingDevice]:
        """Return devices that nobody has decided on, who waits longest first."""
        query = (
            select(PendingDevice).where(PendingDevice.decision == "").order_by(col(PendingDevice.asked_at))
        )
        with self._database.read() as session:
            return list(session.exec(query.offset(offset).limit(limit)))

    def approve(self, actor: Principal, device_id: str, fingerprint: str) -> None:
        """Let a waiting device in: it gets its certificate when it asks again.

        Args:
            actor: who decides.
            device_id: the device.
            fingerprint: of the key that was looked at.

        Raises:
            NotFoundError: no such device waits.
            ConflictError: it waits with another key, or was decided on.
        """
        self._decide(actor, device_id, fingerprint, APPROVED)

    def reject(self, actor: Principal, device_id: str, fingerprint: str) -> None:
        """Refuse a waiting device; its claim may be used by another in its place.

        Raises:
            NotFoundError: no such device waits.
            ConflictError: it waits with another key, or was decided on.
        """
        self._decide(actor, device_id, fingerprint, REJECTED)

    def _decide(self, actor: Principal, device_id: str, fingerprint: str, decision: str) -> None:
        with self._database.write() as session:
            row = session.get(PendingDevice, fingerprint, with_for_update=True)
            if row is None or row.device_id != device_id:
                raise _not_that(session, device_id, fingerprint)
            if row.decision:
                raise ConflictError(f"device {device_id}: {row.decision} by {row.decided_by} already")
            row.decision, row.decided_by, row.decided_at = decision, actor.name, self._clock.now()
            session.add(row)
            if decision == REJECTED:
                self._claims.give_back(session, row.claim_id)
            facts = {"fingerprint": fingerprint, "address": row.address, "target": row.target}
            self._audit.record(session, actor, f"device.{decision}", f"device {device_id}", after=facts)
        self._live.publish("device", {"id": device_id, "what": decision})


def checked_id(value: str) -> str:
    """Return a device id that may be given away.

    Raises:
        InvalidError: it has another form, or is the server's own.
    """
    try:
        device = DeviceId(value)
    except WireError as error:
        raise InvalidError(str(error)) from error
    if device in (SERVER_NAME, PROBE_NAME):
        raise InvalidError(f"device id: {device} is the server's own")
    return str(device)


def check_name(session: Session, device_id: str) -> None:
    """Check that nobody has a name: no device, none that waits, no registered key.

    Raises:
        ConflictError: somebody has.
    """
    registered = select(RegisteredKey.device_id).where(RegisteredKey.device_id == device_id)
    waiting = select(PendingDevice.device_id).where(
        PendingDevice.device_id == device_id, PendingDevice.decision != REJECTED
    )
    if (
        session.get(Device, device_id) is not None
        or session.exec(waiting).first() is not None
        or session.exec(registered).first() is not None
    ):
        raise ConflictError(f"device {device_id}: the name is taken")


def _not_that(session: Session, device_id: str, fingerprint: str) -> NotFoundError | ConflictError:
    waiting = select(PendingDevice).where(PendingDevice.device_id == device_id, PendingDevice.decision == "")
    row = session.exec(waiting).first()
    if row is None:
        return NotFoundError(f"device {device_id}: does not wait to be let in")
    return ConflictError(f"device {device_id}: waits with key {row.fingerprint}, not {fingerprint}")


def _check_free(session: Session, row: RegisteredKey) -> None:
    check_name(session, row.device_id)
    if session.get(RegisteredKey, row.fingerprint) is not None:
        raise ConflictError(f"device {row.device_id}: its key is registered already")
