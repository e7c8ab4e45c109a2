"""Certificates that were taken back: who has which, the list that brokers read, and that it holds there.

A broker refuses a certificate on the list, but leaves a connection that is open: so when it is seen to refuse
what the list names, the server takes a revoked device's place there once, which ends its connection.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlmodel import Session, col, delete, or_, select, update

from fleet.ids import DeviceId
from fleet.wire.enrolment import key_fingerprint
from server.db.engine import Database
from server.db.identity_tables import IssuedCertificate, RevocationNumber
from server.db.tables import Device
from server.errors import BrokerError
from server.ports.broker import Doorman
from server.ports.clock import Clock
from server.services.identity.authority import PROBE_NAME, FleetAuthority, Issued
from server.services.live import Live

#: Expired certificates are remembered for so long, so that an old key is certified only once.
_REMEMBERED: Final = 400 * 86400.0
#: Lists are dated back: a broker whose clock is behind would refuse everybody until then.
_BACKDATED: Final = 86400
_BATCH: Final = 100
#: After so long, mosquitto has ended every connection on which nobody has said who they are.
_LATE_CONNECT: Final = 120.0


class RevocationList(NamedTuple):
    """The newest list.

    Attributes:
        pem: one list of each authority.
        probe: a certificate that the list names, with its key: who shows it must be refused.
    """

    number: int
    pem: bytes
    probe: Issued


class _Listed(NamedTuple):
    issuer: str
    serial: str
    device_id: str


class Revocations:
    """Keeps the list. Methods may be called from any thread."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        authority: FleetAuthority,
        doorman: Doorman,
        live: Live,
        elsewhere: Callable[[], Iterable[tuple[str, str, str]]] = tuple,
    ) -> None:
        """Keep what is needed; the list is made when it is first asked for.

        Args:
            database: knows whose certificates are revoked.
            clock: the time.
            authority: signs the list.
            doorman: sees whether it holds, and throws out.
            live: told of who is shut out.
            elsewhere: names more that is revoked: issuer and serial number in hex, and whose it was.
        """
        self._database: Final = database
        self._clock: Final = clock
        self._authority: Final = authority
        self._doorman: Final = doorman
        self._live: Final = live
        self._elsewhere: Final = elsewhere
        self._lock: Final = threading.Lock()
        self._names: frozenset[_Listed] = frozenset()
        self._list: RevocationList | None = None
        self._settled: Final[set[str]] = set()

    # --- in the transactions of others --------------------------------------------------------------

    def issued(self, session: Session, device_id: str, certificate_pem: str) -> None:
        """Remember a certificate that a device is given."""
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise TypeError("a certificate of ours is for an elliptic-curve key")
        present = col(IssuedCertificate.device_id) == device_id, col(IssuedCertificate.replaced_at).is_(None)
        session.exec(update(IssuedCertificate).where(*present).values(replaced_at=self._clock.now()))
        session.add(
            IssuedCertificate(
                serial=f"{certificate.serial_number:x}",
                device_id=device_id,
                issuer=self._authority.key_id,
                key_fingerprint=key_fingerprint(key),
                not_after=certificate.not_valid_after_utc.timestamp(),
                told=" ".join(x.key_id for x in self._authority.members),
            )
        )
        # A device's present one is kept however long it is away: it tells what the device has yet to learn.
        forgotten = col(IssuedCertificate.not_after) < self._clock.now() - _REMEMBERED
        past = or_(
            col(IssuedCertificate.replaced_at).is_not(None), col(IssuedCertificate.revoked_at).is_not(None)
        )
        session.exec(delete(IssuedCertificate).where(forgotten, past))

    @staticmethod
    def certified(session: Session, fingerprint: str) -> bool:
        """Return whether a key was certified before."""
        query = select(IssuedCertificate.serial).where(IssuedCertificate.key_fingerprint == fingerprint)
        return session.exec(query.limit(1)).first() is not None

    def revoke(self, session: Session, device_id: str) -> None:
        """Take back every certificate of a device."""
        now = self._clock.now()
        query = select(IssuedCertificate).where(
            IssuedCertificate.device_id == device_id, col(IssuedCertificate.revoked_at).is_(None)
        )
        for row in session.exec(query):
            row.revoked_at = now
            session.add(row)

    # --- the list ------------------------------------------------------------------------------------

    def newest(self) -> RevocationList:
        """Return the list of what is revoked now, with a higher number whenever that has changed."""
        with self._lock:
            names = self._revoked()
            if self._list is None or names != self._names:
                self._list, self._names = self._make(names), names
            return self._list

    def _revoked(self) -> frozenset[_Listed]:
        query = select(IssuedCertificate.issuer, IssuedCertificate.serial, IssuedCertificate.device_id).where(
            col(IssuedCertificate.revoked_at).is_not(None),
            col(IssuedCertificate.not_after) > self._clock.now() - _BACKDATED,
        )
        with self._database.read() as session:
            devices = [_Listed(*row) for row in session.exec(query)]
        return frozenset([*devices, *(_Listed(*row) for row in self._elsewhere())])

    def _make(self, names: frozenset[_Listed]) -> RevocationList:
        probe = self._authority.issue_visit(PROBE_NAME)
        with self._database.write() as session:
            row = session.get(RevocationNumber, 1) or RevocationNumber(id=1, number=0, issued_at=0)
            # By the clock, so that a server restored from an old backup is ahead of what brokers have seen.
            row.number = max(int(self._clock.now()), row.number + 1)
            row.issued_at = max(int(self._clock.now()) - _BACKDATED, row.issued_at + 1)
            session.add(row)
            number, issued_at = row.number, row.issued_at
        by_issuer: defaultdict[str, dict[int, str]] = defaultdict(dict)
        for name in names:
            by_issuer[name.issuer][int(name.serial, 16)] = name.device_id
        shown = x509.load_pem_x509_certificate(probe.certificate).serial_number
        by_issuer[self._authority.key_id][shown] = ""
        return RevocationList(number, self._authority.revocation_list(number, issued_at, by_issuer), probe)

    # --- seeing to it --------------------------------------------------------------------------------

    def enforce(self) -> int:
        """End the connections of revoked devices, once the broker refuses them; return how many.

        Each is visited twice: a thief may have connections open on which it has yet to say who it is, which
        mosquitto bears for a minute and a half.

        Raises:
            BrokerError: the broker does not refuse them yet, or cannot be reached; to be tried again.
        """
        again = self._to_visit_again()
        with self._database.read() as session:
            query = select(Device.id).where(
                col(Device.revoked_at).is_not(None), col(Device.shut_out_at).is_(None)
            )
            waiting = list(session.exec(query.limit(_BATCH)))
        if not waiting and not again:
            return 0
        newest = self.newest()
        if not self._doorman.refuses(newest.probe):
            raise BrokerError(
                f"broker: revocation list {newest.number} does not hold there yet, {len(waiting)} revoked "
                "devices may be connected; does `kedge broker watch` run beside it?"
            )
        for device_id in [*waiting, *again]:
            self._doorman.kick(DeviceId(device_id), partial(self._authority.issue_visit, device_id))
            if device_id in waiting:
                self._shut_out(device_id)
            else:
                self._settled.add(device_id)
        return len(waiting)

    def _to_visit_again(self) -> list[str]:
        now = self._clock.now()
        query = select(Device.id).where(
            col(Device.shut_out_at) > now - 2 * _LATE_CONNECT, col(Device.shut_out_at) <= now - _LATE_CONNECT
        )
        with self._database.read() as session:
            return [x for x in session.exec(query.limit(_BATCH)) if x not in self._settled]

    def _shut_out(self, device_id: str) -> None:
        with self._database.write() as session:
            device = session.get(Device, device_id)
            if device is not None:
                device.shut_out_at = self._clock.now()
                session.add(device)
        self._live.publish("device", {"id": device_id, "what": "shut out"})
