"""Keeps the newest statement that each device has signed about itself, and counts what it has not signed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlmodel import Session

from fleet.errors import TrustError
from fleet.ids import DeviceId
from fleet.wire import statement
from fleet.wire.messages import SignedStatement, Statement
from server.db.engine import Database
from server.db.statement_tables import DeviceStatement
from server.db.tables import Device
from server.ports.clock import Clock
from server.services.identity.enrolment import identity_key

_WHY_LENGTH: Final = 200


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a device has signed, and what came in its name that it had not.

    Attributes:
        statement: the newest, None when none has verified.
        row: when it came, and the counts.
    """

    statement: Statement | None
    row: DeviceStatement


class Statements:
    """Takes statements in."""

    def __init__(self, clock: Clock) -> None:
        """Keep what is needed."""
        self._clock: Final = clock

    def take(self, session: Session, device: Device, signed: SignedStatement) -> Statement | None:
        """Verify a statement and keep it if it is the newest; return it then.

        Raises:
            TrustError: the device has not signed it; that is counted on the device's row all the same.
        """
        row = session.get(DeviceStatement, device.id) or DeviceStatement(device_id=device.id)
        session.add(row)
        try:
            public = identity_key(device)
            told = statement.verify(signed, DeviceId(device.id), public)
        except TrustError as error:
            row.badly_signed += 1
            row.badly_signed_at = self._clock.now()
            row.badly_signed_why = str(error)[:_WHY_LENGTH]
            raise
        key = _fingerprint(public)
        if row.key == key and told.sequence <= row.sequence:
            return None  # delivered twice, or somebody's recording
        if told.attack is not None and _refused_before(row) != told.refused:
            row.attack_since = self._clock.now()
        row.key, row.sequence = key, told.sequence
        row.signed_at, row.received_at = float(signed.time), self._clock.now()
        row.statement, row.signature = signed.statement, signed.signature
        return told


def said(session: Session, device_id: str) -> Said:
    """Return what a device has signed, if anything."""
    row = session.get(DeviceStatement, device_id) or DeviceStatement(device_id=device_id)
    return Said(statement=statement.read(row.statement) if row.sequence else None, row=row)


def of_device(database: Database, device_id: str) -> Said:
    """Return what a device has signed, if anything."""
    with database.read() as session:
        return said(session, device_id)


def _refused_before(row: DeviceStatement) -> int:
    return statement.read(row.statement).refused if row.sequence else 0


def _fingerprint(public: ec.EllipticCurvePublicKey) -> str:
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()
