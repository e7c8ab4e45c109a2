"""The key and certificate that the device connects with: in one file, which a power cut leaves whole."""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from device_agent.adapters import device_key, files
from device_agent.adapters.state import StateFolder
from device_agent.errors import StateError, UnreachableError

#: What the library raises at a certificate that is none, or of a kind that it does not know.
_UNREADABLE: Final = (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm)


def next_key(state: StateFolder) -> ec.EllipticCurvePrivateKey:
    """Return the key to have certified next, made now unless a request for it is under way already.

    Raises:
        StateError: it is unusable.
        StorageError: the disk does not take it.
    """
    if not state.tls_next.exists():
        return device_key.make(state.tls_next)
    return device_key.load(state.tls_next)


def keep(state: StateFolder, key: ec.EllipticCurvePrivateKey, certificate_pem: str) -> None:
    """Connect with this key and certificate from now on.

    Raises:
        StorageError: the disk does not take them.
    """
    files.write(state.tls, certificate_pem.encode() + device_key.private_pem(key), 0o600)
    state.tls_next.unlink(missing_ok=True)


def present(state: StateFolder) -> x509.Certificate:
    """Return the certificate that the device connects with.

    Raises:
        StateError: there is none, or it is unreadable.
    """
    try:
        return x509.load_pem_x509_certificate(state.tls.read_bytes())
    except (OSError, *_UNREADABLE) as error:
        raise StateError(f"{state.tls}: {error}") from error


def read(certificate_pem: str) -> x509.Certificate:
    """Return a certificate that somebody has sent.

    Raises:
        UnreachableError: it is none.
    """
    try:
        return x509.load_pem_x509_certificate(certificate_pem.encode())
    except _UNREADABLE as error:
        raise UnreachableError(f"renewal: expected a certificate: {error}") from error


def authorities(known_pem: bytes, ca_pem: str, links_pem: str) -> list[x509.Certificate]:
    """Return the fleet's authorities as a server names them, those that the device may believe.

    It believes the ones it knows, and each whose key one of those has certified: a device that was away while
    the fleet went from one authority to the next follows the links, however many there were.

    Args:
        known_pem: the authorities that the device trusts.
        ca_pem: those that the server says are trusted now.
        links_pem: each authority's key certified by the one before, the oldest first.

    Raises:
        UnreachableError: none of those named can be believed.
    """
    try:
        found = _believed(known_pem, ca_pem, links_pem)
    except _UNREADABLE as error:
        raise UnreachableError(f"renewal: expected the fleet's authorities: {error}") from error
    if not found:
        raise UnreachableError("renewal: expected an authority that this device trusts, or a link to one")
    return found


def _believed(known_pem: bytes, ca_pem: str, links_pem: str) -> list[x509.Certificate]:
    believed = x509.load_pem_x509_certificates(known_pem)
    named = x509.load_pem_x509_certificates(ca_pem.encode())
    for link in x509.load_pem_x509_certificates(links_pem.encode()) if links_pem.strip() else []:
        if issued_by(link, believed):
            believed.append(link)
    keys = {_key(x) for x in believed}
    return [x for x in named if _key(x) in keys]


def issuer(certificate: x509.Certificate) -> str:
    """Return the key id, in hex, of the authority that has signed a certificate; "" where it names none."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except (x509.ExtensionNotFound, *_UNREADABLE):
        return ""
    return (found.key_identifier or b"").hex()


def key_ids(state: StateFolder) -> frozenset[str]:
    """Return the key ids, in hex, of the authorities that the device trusts.

    Raises:
        StateError: they are unreadable.
    """
    try:
        known = x509.load_pem_x509_certificates(state.ca.read_bytes())
        found = (x.extensions.get_extension_for_class(x509.SubjectKeyIdentifier) for x in known)
        return frozenset(x.value.digest.hex() for x in found)
    except (OSError, x509.ExtensionNotFound, *_UNREADABLE) as error:
        raise StateError(f"{state.ca}: {error}") from error


def issued_by(certificate: x509.Certificate, authorities: list[x509.Certificate]) -> bool:
    """Return whether one of the authorities has signed a certificate."""
    return any(_issued(certificate, by) for by in authorities)


def pem(certificates: list[x509.Certificate]) -> bytes:
    """Return certificates as they lie in a file."""
    return b"".join(x.public_bytes(serialization.Encoding.PEM) for x in certificates)


def _issued(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (*_UNREADABLE, InvalidSignature):
        return False
    return True


def _key(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    key = certificate.public_key().public_bytes(serialization.Encoding.DER, form)
    return certificate.subject.public_bytes(), key
