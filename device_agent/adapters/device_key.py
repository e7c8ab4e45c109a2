"""The device's keys: the identity key, in a file or in hardware, and the keys that it connects with.

The identity key stays for the device's life and signs what the device says: enrolment, renewals, statements.
Its file holds the key, or the address of one in hardware (a `pkcs11:` URI). Connections use another key,
which the identity key vouches for: Python's TLS needs one in a file. It is replaced with every certificate.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from device_agent.adapters import files
from device_agent.errors import StateError
from device_agent.ports import DeviceKey
from fleet.errors import MissingExtraError
from fleet.token_uri import SCHEME
from fleet.wire.enrolment import public_pem

if TYPE_CHECKING:  # only devices with such hardware have the library
    from device_agent.adapters.token_key import TokenKey


class FileKey:
    """An identity key in a file; implements `device_agent.ports.DeviceKey`."""

    def __init__(self, path: Path) -> None:
        """Use the key in this file.

        Raises:
            StateError: there is none, or something else.
        """
        self._path: Final = path
        self._key: Final = load(path)

    def public_pem(self) -> str:
        """Return the public half."""
        return public_pem(self._key.public_key())

    def sign(self, data: bytes) -> bytes:
        """Return a signature: ECDSA, SHA-256, DER."""
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))

    def destroy(self) -> None:
        """Forget the key for good."""
        self._path.unlink(missing_ok=True)


def open_key(path: Path) -> DeviceKey:
    """Return the identity key that a file holds or points to.

    Raises:
        StateError: there is none, or it cannot be used.
        MissingExtraError: it lies in hardware, and the library for that is not installed.
    """
    address = _address(path)
    if not address:
        return FileKey(path)
    return _in_hardware(address)


def ensure(path: Path, address: str = "") -> DeviceKey:
    """Return the device's identity key, made now if it has none.

    Args:
        path: the key's file.
        address: a `pkcs11:` URI, for a key in hardware; "" for one in the file.

    Raises:
        StateError: the device has another key already, or the hardware does not give one.
        MissingExtraError: it is to lie in hardware, and the library for that is not installed.
        StorageError: the disk does not take it.
    """
    if path.exists():
        if address and address != _address(path):
            raise StateError(
                f"{path}: this device has another key already; choose another folder with --state"
            )
        return open_key(path)
    if not address:
        make(path)
        return open_key(path)
    key = _in_hardware(address)
    key.ensure()
    files.write(path, address.encode(), 0o600)
    return key


def make(path: Path) -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key and keep it for the agent's eyes only.

    Raises:
        StorageError: the disk does not take it.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    files.write(path, private_pem(key), 0o600)
    return key


def load(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the key in a file.

    Raises:
        StateError: there is none, or something else.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise StateError(f"{path}: expected a private key in PEM; got something else") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StateError(f"{path}: expected an elliptic-curve key")
    return key


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as it lies in a file."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def signer(path: Path) -> Callable[[bytes], bytes]:
    """Return what signs bytes with the identity key of this file (ECDSA, SHA-256, DER), read anew each time.

    What it returns raises StateError where `open_key` does.
    """
    return lambda data: open_key(path).sign(data)


def certificate_request(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a request (PKCS#10, PEM) signed by the key; its subject helps people, and proves nothing."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, os.uname().nodename[:64] or "device")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def _in_hardware(address: str) -> TokenKey:
    try:
        from device_agent.adapters.token_key import TokenKey
    except ModuleNotFoundError as error:
        raise MissingExtraError("a key in hardware", "pkcs11") from error
    return TokenKey(address)


def _address(path: Path) -> str:
    """Return the address that the file holds, "" when it holds a key."""
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error
    return text.strip() if text.startswith(SCHEME) else ""
