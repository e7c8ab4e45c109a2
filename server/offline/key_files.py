"""A person's private key as a file: ed25519, encrypted with a passphrase."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner

from server.durable import write_file
from server.errors import OfflineKeyError

#: Asks a person for a secret, saying what it is for; returns "" where nobody can answer.
Ask: TypeAlias = Callable[[str], str]
#: Who has the file may guess as fast as they like, so a passphrase has at least so many characters.
SHORTEST: Final = 12


def generate(path: Path, passphrase: str, *, unencrypted: bool = False) -> CryptoSigner:
    """Make a key and write it to a new file that only its owner may read.

    Args:
        path: the file; it must not be there yet.
        passphrase: what encrypts it.
        unencrypted: write it as it is, where a medium or a secret store protects it.

    Raises:
        OfflineKeyError: the file is there, the passphrase is too short, or the file cannot be written.
    """
    if path.exists():
        raise OfflineKeyError(f"{path}: is there already, and a key is never written over")
    if not unencrypted and len(passphrase) < SHORTEST:
        raise OfflineKeyError(
            f"passphrase: expected at least {SHORTEST} characters, got {len(passphrase)}; "
            "--unencrypted writes the key as it is"
        )
    key = Ed25519PrivateKey.generate()
    how = NoEncryption() if unencrypted else BestAvailableEncryption(passphrase.encode())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how), mode=0o600)
    except OSError as error:
        raise OfflineKeyError(f"{path}: {error.strerror}") from error
    return CryptoSigner(key)


def load(path: Path, ask: Ask) -> CryptoSigner:
    """Return the key in a file, asking for its passphrase when it has one.

    Raises:
        OfflineKeyError: there is no such file, no ed25519 key in it, or the passphrase is wrong.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OfflineKeyError(f"{path}: {error.strerror}") from error
    encrypted = b"ENCRYPTED PRIVATE KEY" in data
    passphrase = ask(f"passphrase of {path}").encode() if encrypted else None
    try:
        key = load_pem_private_key(data, passphrase or None)
    except TypeError as error:
        raise OfflineKeyError(f"{path}: is encrypted, and no passphrase was given") from error
    except ValueError as error:
        what = "wrong passphrase" if encrypted else "expected a private key in PEM"
        if b'"keyval"' in data:
            what += ", and this is the public half"
        raise OfflineKeyError(f"{path}: {what}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise OfflineKeyError(f"{path}: expected an ed25519 key, got {type(key).__name__}")
    return CryptoSigner(key)
