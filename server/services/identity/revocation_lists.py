"""Revocation lists: made, and in their file, one of each authority after the other, held against those.

Each entry names whose certificate it was, in an extension of ours that others pass over: who keeps a broker
can end that device's connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.errors import WireError
from fleet.ids import DeviceId
from server.errors import ClientError
from server.services.identity.authority_folder import CA_LIFETIME, Authority

_ONE: Final = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----\s*", re.DOTALL)
#: What the library raises at a list that is none, or of a kind that it does not know.
_UNREADABLE: Final = (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm)

#: Whose certificate it was: a UTF8String of at most 63 bytes. An arc that nobody has to hand out (X.667).
_NAME: Final = x509.ObjectIdentifier("2.25.194997386027572154573912315948311244687")
_UTF8_STRING: Final = 0x0C

List = x509.CertificateRevocationList


def make(by: Authority, number: int, issued_at: int, entries: Mapping[int, str]) -> bytes:
    """Return an authority's list (PEM).

    Args:
        by: signs it.
        number: higher than that of any list before.
        issued_at: later than that of any list before, for OpenSSL takes the latest it was given.
        entries: serial numbers, and whose certificates those are; "" names nobody.
    """
    at = datetime.fromtimestamp(issued_at, timezone.utc)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(by.certificate.subject)
        .last_update(at)
        .next_update(at + CA_LIFETIME)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key()), critical=False
        )
    )
    for serial, name in sorted(entries.items()):
        builder = builder.add_revoked_certificate(_entry(serial, at, name))
    return builder.sign(by.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _entry(serial: int, at: datetime, name: str) -> x509.RevokedCertificate:
    entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at)
    if name:
        text = name.encode()
        value = bytes([_UTF8_STRING, len(text)]) + text
        entry = entry.add_extension(x509.UnrecognizedExtension(_NAME, value), critical=False)
    return entry.build()


def names(lists: Iterable[List]) -> set[DeviceId]:
    """Return whose certificates the lists name."""
    return {name for one in lists for entry in one if (name := _whose(entry)) is not None}


def _whose(entry: x509.RevokedCertificate) -> DeviceId | None:
    try:
        found = entry.extensions.get_extension_for_oid(_NAME).value
        if isinstance(found, x509.UnrecognizedExtension):
            return DeviceId(found.value[2:].decode())
    except (x509.ExtensionNotFound, UnicodeDecodeError, WireError):
        pass  # an entry that names nobody, as the probe's
    return None


def read(lists: bytes, ca_pem: bytes) -> list[List]:
    """Return the lists, one after the other in PEM, that one of the authorities has signed.

    Raises:
        ClientError: something is no list, or the authorities are none.
    """
    try:
        authorities = x509.load_pem_x509_certificates(ca_pem)
        found = [x509.load_pem_x509_crl(text) for text in _ONE.findall(lists)]
        return [x for x in found if any(_signed(x, by) for by in authorities)]
    except _UNREADABLE as error:
        raise ClientError(f"revocation list: {error}") from error


def pem(lists: Iterable[List]) -> bytes:
    """Return lists as they lie in a file."""
    return b"".join(x.public_bytes(serialization.Encoding.PEM) for x in lists)


def number(one: List) -> int:
    """Return a list's number: higher ones are newer."""
    return one.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def _signed(one: List, by: x509.Certificate) -> bool:
    key = by.public_key()
    if one.issuer != by.subject or not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        return one.is_signature_valid(key)
    except (*_UNREADABLE, InvalidSignature):
        return False
