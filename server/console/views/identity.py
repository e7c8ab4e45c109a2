"""What speaks against a device, and how long it can still prove who it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509
from sqlmodel import Session, col, func, select

from server.db.identity_tables import IssuedCertificate
from server.db.statement_tables import DeviceStatement
from server.db.tables import Device, Refusal

_DAY: Final = 86400.0
#: A device asks for its next certificate at half of the old one's life; with less than this left, it cannot.
_LEFT: Final = 0.25
#: No certificate that ends later than this is looked at more closely.
_SOON: Final = 10 * _DAY
#: A broker refuses a revoked device within seconds where something watches over it.
_SHUT_OUT_SECONDS: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A device's newest certificate.

    Attributes:
        until: when it ends.
        overdue: the next one should be there by now.
    """

    until: float
    overdue: bool


def alarmed(session: Session, now: float) -> frozenset[str]:
    """Return the devices that refused something in the last day, or in whose name something was forged."""
    since = now - _DAY
    attack, forged = col(DeviceStatement.attack_since), col(DeviceStatement.badly_signed_at)
    refused = session.exec(select(Refusal.device_id).where(Refusal.received_at > since).distinct())
    told = session.exec(select(DeviceStatement.device_id).where((attack > since) | (forged > since)))
    return frozenset((*refused, *told))


def certificate(session: Session, device: Device, now: float) -> Certificate | None:
    """Return a device's newest certificate, or None where it has none that counts."""
    until = session.exec(
        select(func.max(IssuedCertificate.not_after)).where(
            IssuedCertificate.device_id == device.id, col(IssuedCertificate.revoked_at).is_(None)
        )
    ).one()
    return None if until is None else _certificate(device, until, now)


def overdue(session: Session, now: float) -> dict[str, float]:
    """Return the devices heard of lately that should have a newer certificate, and when theirs end."""
    until = func.max(IssuedCertificate.not_after)
    query = (
        select(Device, until)
        .join(IssuedCertificate, col(IssuedCertificate.device_id) == Device.id)
        .where(
            col(Device.revoked_at).is_(None),
            col(IssuedCertificate.revoked_at).is_(None),
            col(Device.last_seen_at) > now - _DAY,
        )
        .group_by(col(Device.id))
        .having(until < now + _SOON)
        .order_by(until)
    )
    found = {device.id: _certificate(device, ends, now) for device, ends in session.exec(query)}
    return {name: held.until for name, held in found.items() if held.overdue}


def not_shut_out(session: Session, now: float) -> list[Device]:
    """Return revoked devices that the broker should refuse by now, and does not; the longest first."""
    revoked = col(Device.revoked_at)
    query = select(Device).where(revoked < now - _SHUT_OUT_SECONDS, col(Device.shut_out_at).is_(None))
    return list(session.exec(query.order_by(revoked)))


def _certificate(device: Device, until: float, now: float) -> Certificate:
    left = until - now
    return Certificate(until=until, overdue=left <= 0 or left < _LEFT * _life(device))


def _life(device: Device) -> float:
    """Return how long the newest certificate holds in all, in seconds; 0 where it cannot be told."""
    if not device.certificate_pem:
        return 0.0
    newest = x509.load_pem_x509_certificate(device.certificate_pem.encode())
    return (newest.not_valid_after_utc - newest.not_valid_before_utc).total_seconds()
