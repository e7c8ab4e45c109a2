"""Enrolment: a claim and a certificate request in, a device with its credentials out."""

from __future__ import annotations

import secrets
from typing import Final

from cryptography import x509
from sqlmodel import Session

from fleet.errors import WireError
from fleet.ids import DeviceId, Name
from fleet.wire.enrolment import BrokerAccess, EnrolReply, EnrolRequest, RenewReply, RenewRequest
from server.db.engine import Database
from server.db.tables import Device
from server.errors import ConflictError, ForbiddenError, InvalidError
from server.ports.clock import Clock
from server.services.audit import Audit
from server.services.authority import FleetAuthority
from server.services.claims import Claims
from server.services.live import Live
from server.services.roles import SYSTEM
from server.services.secrets import hashed, new_secret


class Enrolment:
    """Takes new devices in."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        audit: Audit,
        live: Live,
        claims: Claims,
        authority: FleetAuthority,
        broker_url: str,
        *,
        passwords: bool,
    ) -> None:
        """Keep what is needed.

        Args:
            database: where devices are kept.
            clock: the time.
            audit: told of every device.
            live: told of every device.
            claims: what a device must show.
            authority: signs certificates.
            broker_url: where devices connect.
            passwords: the broker knows devices by password, not by certificate.
        """
        self._database: Final = database
        self._clock: Final = clock
        self._audit: Final = audit
        self._live: Final = live
        self._claims: Final = claims
        self._authority: Final = authority
        self._broker_url: Final = broker_url
        self._passwords: Final = passwords

    def enrol(self, request: EnrolRequest) -> EnrolReply:
        """Enrol a device; one that lost our reply and asks again with the same key gets it again.

        Raises:
            InvalidError: a name, a target or the certificate request is no such thing.
            ForbiddenError: the claim does not allow it.
            ConflictError: the name belongs to another device.
        """
        device_id, target = _names(request)
        certificate = self._authority.sign_device(request.csr_pem, device_id)
        password = new_secret() if self._passwords else ""
        with self._database.write() as session:
            device = self._again(session, device_id, certificate, request, target)
            device.certificate_pem = certificate
            device.password_hash = hashed(password) if password else ""
            session.add(device)
            self._audit.record(
                session,
                SYSTEM,
                "device.enrol",
                f"device {device_id}",
                after={"target": target, "claim": device.claim_id, "labels": device.labels},
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

    def renew(self, request: RenewRequest) -> RenewReply:
        """Give a device a new certificate for its key, once half of the present one's life has passed.

        Whoever repeats a request that they saw gets what is of use to the holder of the key only.

        Raises:
            InvalidError: the certificate request is no such thing.
            ForbiddenError: no enrolled device of that name has this key.
        """
        try:
            device_id = DeviceId(request.device_id)
        except WireError as error:
            raise InvalidError(str(error)) from error
        certificate = self._authority.sign_device(request.csr_pem, device_id)
        with self._database.write() as session:
            device = session.get(Device, device_id)
            if (
                device is None
                or device.revoked_at is not None
                or _public_key(device.certificate_pem) != _public_key(certificate)
            ):
                raise ForbiddenError("renewal: expected the key of an enrolled device")
            if self._clock.now() < _half_life(device.certificate_pem):
                return RenewReply(certificate_pem=device.certificate_pem)
            device.certificate_pem = certificate
            session.add(device)
            self._audit.record(session, SYSTEM, "device.renew", f"device {device_id}")
        return RenewReply(certificate_pem=certificate)

    def _again(
        self, session: Session, device_id: DeviceId, certificate: str, request: EnrolRequest, target: str
    ) -> Device:
        known = session.get(Device, device_id)
        if known is None:
            claim = self._claims.spend(session, request.claim, target)
            return Device(
                id=device_id,
                target=target,
                labels=dict(claim.labels),
                claim_id=claim.id,
                enrolled_at=self._clock.now(),
            )
        # Its own key and the very claim that it enrolled with: the first reply was lost on the way.
        claim_hash = self._claims.hash_of(session, known.claim_id)
        same_key = _public_key(known.certificate_pem) == _public_key(certificate)
        if (
            same_key
            and known.revoked_at is None
            and claim_hash == hashed(request.claim)
            and known.target == target
        ):
            return known
        raise ConflictError(f"device {device_id}: the name is taken")


def _names(request: EnrolRequest) -> tuple[DeviceId, str]:
    try:
        return DeviceId(request.name or f"dev-{secrets.token_hex(5)}"), Name(request.target)
    except WireError as error:
        raise InvalidError(str(error)) from error


def _public_key(certificate_pem: str) -> object:
    return x509.load_pem_x509_certificate(certificate_pem.encode()).public_key()


def _half_life(certificate_pem: str) -> float:
    found = x509.load_pem_x509_certificate(certificate_pem.encode())
    return (found.not_valid_before_utc.timestamp() + found.not_valid_after_utc.timestamp()) / 2
