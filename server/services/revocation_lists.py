"""Revocation lists in their file: one of each authority, one after the other, held against those."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.errors import ClientError

_ONE: Final = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----\s*", re.DOTALL)
#: What the library raises at a list that is none, or of a kind that it does not know.
_UNREADABLE: Final = (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm)

List = x509.CertificateRevocationList


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
