"""The device's private key: made on the device, read from its file, and shown to have in requests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from device_agent.adapters import files
from device_agent.errors import StateError


def make(path: Path) -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key and keep it for the agent's eyes only.

    Raises:
        StorageError: the disk does not take it.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files.write(path, pem, 0o600)
    return key


def load(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the key.

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


def signer(path: Path) -> Callable[[bytes], bytes]:
    """Return what signs bytes with the key in this file (ECDSA, SHA-256, DER), read anew each time.

    What it returns raises StateError where `load` does.
    """
    return lambda data: load(path).sign(data, ec.ECDSA(hashes.SHA256()))


def certificate_request(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a request (PKCS#10, PEM) signed by the key; its subject helps people, and proves nothing."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, os.uname().nodename[:64] or "device")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()
