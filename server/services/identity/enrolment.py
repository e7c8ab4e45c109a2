"""Enrolment: a claim or a registered key in, and a certificate request; a device with credentials out."""

from __future__ import annotations

import secrets
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlmodel import Session, select

from fleet.errors import TrustError, WireError
from fleet.ids import DeviceId
from fleet.wire import vouching
from fleet.wire.enrolment import (
    BrokerAccess,
    EnrolReply,
    EnrolRequest,
    PendingReply,
    RenewReply,
    RenewRequest,
    Vouched,
    key_fingerprint,
    public_key,
    public_pem,
)
from server.db.engine import Database
from server.db.identity_tables import PendingDevice, RegisteredKey
from server.db.locks import Turn, take
from server.db.tables import Claim, Device
from server.errors import ConflictError, ForbiddenError, InvalidError
from server.ports.clock import Clock
from server.services.identity.admission import APPROVED, REJECTED, check_name, checked_id
from server.services.identity.authority import FleetAuthority, requested_key
from server.services.identity.claims import Claims, known_target
from server.services.identity.revocations import Revocations
from server.services.live import Live
from server.services.people.audit import Audit
from server.services.people.roles import SYSTEM
from server.services.people.secrets import hashed, new_secret

#: A device that waits asks again after so many seconds at first.
RETRY_SECONDS: Final = 15.0


class _Asking(NamedTuple):
    """Who asks: the identity key, and what it asks for."""

    key: ec.EllipticCurvePublicKey
    fingerprint: str
    target: str
    request: EnrolRequest


class Enrolment:
    """Takes new devices in, and renews the certificates of those that are."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        audit: Audit,
        live: Live,
        claims: Claims,
        authority: FleetAuthority,
        revocations: Revocations,
        *,
        broker_url: str,
        passwords: bool,
        approval: bool = False,
    ) -> None:
        """Keep what is needed.

        Args:
            database: where devices are kept.
            clock: the time.
            audit: told of every device.
            live: told of every device.
            claims: what a device must show.
            authority: signs certificates.
            revocations: told of every certificate.
            broker_url: where devices connect.
            passwords: the broker knows devices by password, not by certificate.
            approval: a person must let in every device that comes with a claim, whatever the claim says.
        """
        self._database: Final = database
        self._clock: Final = clock
        self._audit: Final = audit
        self._live: Final = live
        self._claims: Final = claims
        self._authority: Final = authority
        self._revocations: Final = revocations
        self._broker_url: Final = broker_url
        self._passwords: Final = passwords
        self._approval: Final = approval

    def enrol(self, request: EnrolRequest, address: str = "") -> EnrolReply | PendingReply:
        """Enrol a device, or have it wait; one that asks again with the same key gets the same answer.

        Args:
            request: what the device sends.
            address: where it asks from, for the person who decides.

        Raises:
            InvalidError: a name, a target or the certificate request is no such thing.
            ForbiddenError: the claim does not allow it, no such key is registered, or it was rejected.
            ConflictError: the name belongs to another device.
        """
        asking = _asking(request)
        password = new_secret() if self._passwords else ""
        with self._database.write() as session:
            take(session, Turn.ENROLMENT)
            device = self._device(session, asking, address)
            if isinstance(device, Device):
                device_id, certificate = device.id, self._admit(session, device, asking, password)
            else:
                device_id, certificate = device.device_id, ""
        if not certificate:
            self._live.publish("device", {"id": device_id, "what": "pending"})
            return PendingReply(
                device_id=device_id, fingerprint=asking.fingerprint, retry_seconds=RETRY_SECONDS
            )
        self._live.publish("device", {"id": device_id, "what": "enrolled"})
        return EnrolReply(
            device_id=device_id,
            certificate_pem=certificate,
            ca_pem=self._authority.ca_pem.decode(),
            broker=BrokerAccess(
                url=self._broker_url, username=device_id if password else "", password=password
            ),
        )

    def _admit(self, session: Session, device: Device, asking: _Asking, password: str) -> str:
        certificate = self._certified(session, device, asking.request.csr_pem)
        device.password_hash = hashed(password) if password else ""
        session.add(device)
        facts = {"target": device.target, "claim": device.claim_id, "labels": device.labels}
        facts |= {"fingerprint": asking.fingerprint}
        self._audit.record(session, SYSTEM, "device.enrol", f"device {device.id}", after=facts)
        return certificate

    def _device(self, session: Session, asking: _Asking, address: str) -> Device | PendingDevice:
        """Return the device that asks, new or known, or its place in the line."""
        same_key = select(Device).where(Device.identity_key == public_pem(asking.key))
        known = session.exec(same_key.with_for_update()).first()
        if known is not None:
            return self._again(session, known, asking)
        waiting = session.get(PendingDevice, asking.fingerprint, with_for_update=True)
        if waiting is not None:
            return self._waiting(session, waiting)
        registered = session.get(RegisteredKey, asking.fingerprint)
        if registered is not None:
            return self._registered(session, registered, asking)
        return self._claimed(session, asking, address)

    def _again(self, session: Session, known: Device, asking: _Asking) -> Device:
        """Return a device whose first reply was lost on the way: its own key, and what it enrolled with."""
        registered = session.get(RegisteredKey, asking.fingerprint)
        claim_hash = self._claims.hash_of(session, known.claim_id)
        same_right = (claim_hash and claim_hash == hashed(asking.request.claim)) or (
            registered is not None and registered.device_id == known.id
        )
        if known.revoked_at is None and same_right and asking.request.name in ("", known.id):
            return known
        raise ConflictError(f"device {known.id}: the name is taken, and this key is enrolled")

    def _waiting(self, session: Session, row: PendingDevice) -> Device | PendingDevice:
        if row.decision == REJECTED:
            raise ForbiddenError(f"device {row.device_id}: rejected by an operator")
        if row.decision != APPROVED:
            row.last_asked_at = self._clock.now()
            session.add(row)
            return row
        session.delete(row)
        return Device(
            id=row.device_id,
            target=row.target,
            labels=dict(row.labels),
            claim_id=row.claim_id,
            identity_key=row.identity_key,
            enrolled_at=self._clock.now(),
        )

    def _registered(self, session: Session, row: RegisteredKey, asking: _Asking) -> Device:
        if asking.target != row.target:
            raise ForbiddenError(
                f"registered key: expected a device of target {row.target}, got {asking.target}"
            )
        if asking.request.name not in ("", row.device_id):
            raise ForbiddenError(
                f"registered key: expected device {row.device_id}, got {asking.request.name}"
            )
        if session.get(Device, row.device_id) is not None:
            raise ConflictError(f"device {row.device_id}: the name is taken")
        row.used_at = self._clock.now()
        session.add(row)
        return Device(
            id=row.device_id,
            target=row.target,
            labels=dict(row.labels),
            identity_key=public_pem(asking.key),
            enrolled_at=self._clock.now(),
        )

    def _claimed(self, session: Session, asking: _Asking, address: str) -> Device | PendingDevice:
        request = asking.request
        if not request.claim:
            raise ForbiddenError("enrolment: expected a claim, or a key that is registered; it is not")
        device_id = checked_id(request.name or f"dev-{secrets.token_hex(5)}")
        check_name(session, device_id)
        claim: Claim = self._claims.spend(session, request.claim, asking.target)
        now, key = self._clock.now(), public_pem(asking.key)
        if not (claim.approval or self._approval):
            return Device(
                id=device_id, target=asking.target, labels=dict(claim.labels), claim_id=claim.id,
                identity_key=key, enrolled_at=now,
            )  # fmt: skip
        row = PendingDevice(
            device_id=device_id,
            fingerprint=asking.fingerprint,
            identity_key=key,
            target=asking.target,
            labels=dict(claim.labels),
            claim_id=claim.id,
            address=address,
            asked_at=now,
            last_asked_at=now,
        )
        session.add(row)
        facts = {"fingerprint": asking.fingerprint, "address": address, "target": asking.target}
        self._audit.record(session, SYSTEM, "device.wait", f"device {device_id}", after=facts)
        return row

    def renew(self, request: RenewRequest) -> RenewReply:
        """Give a device a new certificate, once half of the present one's life has passed.

        Only the identity key counts, not the certificate: that may have ended long ago. Whoever repeats a
        request that they saw gets nothing new, for a key is certified once.

        Raises:
            InvalidError: the certificate request is no such thing.
            ForbiddenError: no enrolled device of that name has this key.
        """
        try:
            device_id = DeviceId(request.device_id)
        except WireError as error:
            raise InvalidError(str(error)) from error
        key = _identity(request.vouched, vouching.RENEW, device_id, request.csr_pem)
        with self._database.write() as session:
            # Locked: it must not be revoked, or renewed again, between this look and the new certificate.
            device = session.get(Device, device_id, with_for_update=True)
            if device is None or device.revoked_at is not None or device.identity_key != public_pem(key):
                raise ForbiddenError("renewal: expected the key of an enrolled device")
            certificate = self._renewed(session, device, request)
        return RenewReply(
            certificate_pem=certificate,
            ca_pem=self._authority.ca_pem.decode(),
            links_pem=self._authority.links_pem.decode(),
        )

    def _renewed(self, session: Session, device: Device, request: RenewRequest) -> str:
        before = device.certificate_pem
        certificate = self._certified(session, device, request.csr_pem)
        if certificate != before:
            self._audit.record(session, SYSTEM, "device.renew", f"device {device.id}")
        return certificate

    def _certified(self, session: Session, device: Device, csr_pem: str) -> str:
        """Return a certificate for a key: the present one while half of its life is ahead, or a new one.

        A key that another has replaced is certified no more: a request that somebody has recorded, sent again
        to whichever address, would make an old key, from a disk that was thrown away, good again.
        """
        present, wanted = device.certificate_pem, requested_key(csr_pem)
        found = x509.load_pem_x509_certificate(present.encode()) if present else None
        same = found is not None and found.public_key() == wanted
        if found is not None and same and self._fresh(found):
            return present
        if not same and self._revocations.certified(session, key_fingerprint(wanted)):
            raise ForbiddenError("certificate request: expected a key that was not certified before")
        device.certificate_pem = self._authority.sign_device(csr_pem, DeviceId(device.id))
        session.add(device)
        self._revocations.issued(session, device.id, device.certificate_pem)
        return device.certificate_pem

    def _fresh(self, found: x509.Certificate) -> bool:
        """Return whether the authority that signs now has signed it, and half of its life is ahead."""
        return self._clock.now() < _half_life(found) and self._authority.signed(found)


def identity_key(device: Device) -> ec.EllipticCurvePublicKey:
    """Return the key that a device enrolled with, and signs what it says with.

    Raises:
        TrustError: none is known of it.
    """
    try:
        return public_key(device.identity_key)
    except WireError as error:
        raise TrustError(f"device {device.id}: {error}", reason="malformed") from error


def _asking(request: EnrolRequest) -> _Asking:
    try:
        name = DeviceId(request.name) if request.name else ""
    except WireError as error:
        raise InvalidError(str(error)) from error
    target = known_target(request.target)
    key = _identity(request.vouched, vouching.ENROL, name, request.csr_pem)
    return _Asking(key, key_fingerprint(key), target, request)


def _identity(vouched: Vouched | None, purpose: str, name: str, csr_pem: str) -> ec.EllipticCurvePublicKey:
    """Return the identity key behind a certificate request: who vouches for it, or its own."""
    own = requested_key(csr_pem)
    if vouched is None:
        return own
    try:
        return vouching.check(vouched, purpose, name, csr_pem)
    except (TrustError, WireError) as error:
        raise ForbiddenError(str(error)) from error


def _half_life(found: x509.Certificate) -> float:
    return (found.not_valid_before_utc.timestamp() + found.not_valid_after_utc.timestamp()) / 2
