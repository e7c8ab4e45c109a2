"""What comes back with a kit: reports that a device has signed, and the director's receipt for them.

A device forgets what it has put on a stick only when a receipt says that the server has it; otherwise who
finds the stick could make it forget what nobody else knows. So receipts are signed by the director, whose key
a device knows from the image repository. A receipt repeated by somebody makes a device forget nothing new.
A receipt may also name, by its digest, a file of answers to the device's hard requests that lies beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from tuf.api.metadata import Targets

from fleet.errors import TrustError, WireError
from fleet.ids import DeviceId, Digest
from fleet.trust import metadata_set as rules
from fleet.trust import proof
from fleet.trust.assignment import DIRECTOR
from fleet.trust.metadata_set import TrustedMetadata
from fleet.trust.proof import Proof
from fleet.wire import kit
from fleet.wire.kit import Reports, SignedReports

PURPOSE: Final = "kit-reports"
#: The signed field of a receipt: none that an assignment has, so that neither stands for the other.
FIELD: Final = "x-kedge-receipt"
#: Files that one receipt names: the newest.
MOST: Final = 256
LIMIT: Final = 64 * 1024


class _Terms(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The field `x-kedge-receipt`."""

    device: str
    reports: tuple[str, ...]
    answers: str = ""


class Receipt(NamedTuple):
    """What the director says to a device in a kit.

    Attributes:
        reports: digests of the files of reports that the server has.
        answers: digest of the file of answers, None when there is none.
    """

    reports: tuple[Digest, ...] = ()
    answers: Digest | None = None


def build(
    device: DeviceId, reports: Iterable[Digest], expires: datetime, answers: Digest | None = None
) -> Targets:
    """Return a receipt to be signed by the director."""
    terms = _Terms(
        device=str(device), reports=tuple(str(x) for x in reports)[:MOST], answers=str(answers or "")
    )
    return Targets(
        version=1, expires=expires, targets={}, unrecognized_fields={FIELD: msgspec.to_builtins(terms)}
    )


def verify(trusted: TrustedMetadata, data: bytes, device: DeviceId) -> Receipt:
    """Return what a receipt for this device says.

    Raises:
        TrustError: it is not signed by the director, or is for another device.
    """
    if len(data) > LIMIT:
        raise TrustError(f"receipt: expected at most {LIMIT} bytes, got {len(data)}", reason="too_large")
    metadata = rules.parse(Targets, data, "receipt")
    rules.check_signatures(metadata, trusted.targets(), DIRECTOR)
    try:
        terms = msgspec.convert(metadata.signed.unrecognized_fields.get(FIELD), _Terms)
        found = Receipt(
            tuple(Digest(x) for x in terms.reports), Digest(terms.answers) if terms.answers else None
        )
    except (msgspec.ValidationError, WireError) as error:
        raise TrustError(f"receipt: {FIELD}: {error}", reason="malformed") from error
    if terms.device != device:
        raise TrustError(
            f"receipt: signed for device {terms.device!r}, and this is {str(device)!r}", reason="wrong_device"
        )
    return found


def sign_reports(reports: Reports, now: datetime, key: Callable[[bytes], bytes]) -> SignedReports:
    """Return a file of reports with the device's signature; `key` signs bytes with its identity key."""
    body, time = kit.encode(reports), max(0, int(now.timestamp()))
    signature = key(proof.to_sign(PURPOSE, DeviceId(reports.device), time, body))
    return SignedReports(reports=body, time=time, signature=signature)


def claimed_device(signed: SignedReports) -> DeviceId:
    """Return who a file says that it is from, verifying nothing yet.

    Raises:
        WireError: it is no file of reports.
    """
    return DeviceId(kit.decode(Reports, signed.reports).device)


def verify_reports(signed: SignedReports, public: ec.EllipticCurvePublicKey) -> Reports:
    """Return what a device has signed.

    Raises:
        TrustError: this key has not signed it.
        WireError: what it has signed are no reports.
    """
    device = claimed_device(signed)
    proof.verify(Proof(device, signed.time, signed.signature), public, PURPOSE, signed.reports)
    return kit.decode(Reports, signed.reports)
